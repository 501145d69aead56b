//! The application library, Rust and C: deploy policies, register executors, share Maps.
