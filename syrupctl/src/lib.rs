//! The command line of Syrup.
