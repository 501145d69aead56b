//! RocksDB server, open-loop load generator, experiments and reports.
