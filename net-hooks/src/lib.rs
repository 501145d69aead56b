//! Packet hooks: socket-select.
