"""Reports: results as one file that anybody can open."""
