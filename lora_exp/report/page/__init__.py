"""The report as a page: what is in it (`content`), the file (`document`), served (`server`)."""
