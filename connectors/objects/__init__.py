"""Images in object stores (S3, Google Cloud Storage, Azure) and on the web: listed, read, kept on the disk."""
