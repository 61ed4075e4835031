"""One expert as text, page, picture and data."""
