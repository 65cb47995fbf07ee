"""Images in archives: WebDataset's tars, tables of Parquet, and folders at addresses of fsspec, a piece each."""
