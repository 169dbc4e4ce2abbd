"""The HTTP routes, one file a face. Each only translates; the laws are in `dispatch`."""
