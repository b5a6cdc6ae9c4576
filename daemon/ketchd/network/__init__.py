"""Networks: addresses, published ports, names and the bridges that carry them."""
