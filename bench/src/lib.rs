//! RocksDB server, open-loop load generator, experiments and reports.

pub mod clock;
pub mod experiment;
pub mod interrupt;
pub mod load;
mod namespace;
pub mod priority;
mod report;
pub mod rocksdb;
pub mod server;
pub mod simulate;
pub mod socket;
pub mod token_agent;
pub mod turns;
pub mod wire;
pub mod work;
