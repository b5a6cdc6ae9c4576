"""The one database: it owns every directory of the data root."""
