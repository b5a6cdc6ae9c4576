"""Names for containers that nobody named: a mood and a thing from the harbour. Random by nature."""

from __future__ import annotations

import random

_MOODS = (
    "able amber ample bold brave bright brisk calm civil clear clever cosy crisp eager early easy fair "
    "fine firm fond frank fresh gentle glad golden good grand happy hardy honest jolly keen kind lively "
    "loyal lucky mellow merry mild modest neat nimble noble patient placid plain polite proud quick "
    "quiet rapid ready serene sharp shiny silent smart smooth snug sober solid sound spry stable steady "
    "sturdy sunny swift tidy tranquil trim true trusty upbeat vivid warm wise witty young zesty"
).split()
_THINGS = (
    "anchor bark barge beacon boom bosun bow brig bridge buoy cable cabin canoe capstan cargo channel "
    "chart clipper compass cove cutter deck derrick dinghy dock dory ferry fjord frigate galley gangway "
    "gull harbour hatch hawser helm hull jetty keel ketch lagoon lantern launch lighter lighthouse lock "
    "locker lugger mast mate mooring oar pennant pier pilot pinnace plank pontoon port prow pulley quay "
    "raft reef rigging rudder sail schooner sextant shoal skiff skipper sloop spar stern strait tender "
    "tide tiller trawler tug wake wharf winch yacht yawl"
).split()


def random_name() -> str:
    """Such as `brisk_lantern42`."""
    return f"{random.choice(_MOODS)}_{random.choice(_THINGS)}{random.randrange(100)}"
