"""What people do with influences: each a table of its own."""
