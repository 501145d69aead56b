//! Integration tests and their helpers.
