//! `syrupctl map get|set|dump`

use clap::{Args, Subcommand};
use serde::Serialize;
use syrup_protocol::{MapEntry, Result};

use crate::args::{app_name, integer, integer_u32};
use crate::context::Context;
use crate::output::table;

const EXAMPLES: &str = "\
Examples:
  syrupctl map dump rocksdb request_type
      The entries that are not zero.

  syrupctl map get rocksdb request_type 3
      The value of one key.

  syrupctl map set rocksdb request_type 3 0x2
      Write it; policies see it with their next input.

'syrupctl show APP' lists an app's Maps.";

const GET_EXAMPLES: &str = "\
Example:
  syrupctl map get rocksdb request_type 3
      Prints the value alone: in decimal, or as hexadecimal bytes where values are no integers.";

const SET_EXAMPLES: &str = "\
Examples:
  syrupctl map set rocksdb request_type 3 2
  syrupctl map set rocksdb limits 0 0xffff

Only Maps whose values have 8 bytes can be written this way.";

const DUMP_EXAMPLES: &str = "\
Examples:
  syrupctl map dump rocksdb request_type
      The entries that are not zero: Maps are arrays, and most entries were never written.

  syrupctl map dump rocksdb request_type --all -o json
      Every entry. The formats differ in form only: JSON, too, has zeros with --all alone.";

/// Read and write the Maps that policies share with their app
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Map {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Print one entry
    #[command(after_help = GET_EXAMPLES)]
    Get {
        #[command(flatten)]
        map: MapName,
        /// The entry's index, decimal or 0x hexadecimal
        #[arg(value_parser = integer_u32)]
        key: u32,
    },
    /// Write one entry
    #[command(after_help = SET_EXAMPLES)]
    Set {
        #[command(flatten)]
        map: MapName,
        /// The entry's index, decimal or 0x hexadecimal
        #[arg(value_parser = integer_u32)]
        key: u32,
        /// The new value, decimal or 0x hexadecimal
        #[arg(value_parser = integer)]
        value: u64,
    },
    /// Print the entries that are not zero
    #[command(after_help = DUMP_EXAMPLES)]
    Dump {
        #[command(flatten)]
        map: MapName,
        /// Zeros, too
        #[arg(long)]
        all: bool,
    },
}

#[derive(Debug, Args)]
struct MapName {
    /// The app
    #[arg(value_parser = app_name)]
    app: String,
    /// The Map's name in the policy
    map: String,
}

/// One shape for all three verbs: `get` and `set` have one entry.
#[derive(Serialize)]
struct Body<'a> {
    app: &'a str,
    map: &'a str,
    entries: Vec<MapEntry>,
}

impl Map {
    pub fn run(self, context: &Context) -> Result<u8> {
        let arbiter = context.arbiter()?;
        match self.verb {
            Verb::Get { map: MapName { app, map }, key } => {
                let entry = arbiter.map_get(&app, &map, key)?;
                let body = Body { app: &app, map: &map, entries: vec![entry] };
                context.output.print(&body, || lines(&body.entries, value))?;
            }
            Verb::Set { map: MapName { app, map }, key, value: new } => {
                arbiter.map_set(&app, &map, key, new)?;
                let entry = arbiter.map_get(&app, &map, key)?;
                let body = Body { app: &app, map: &map, entries: vec![entry] };
                context.output.print(&body, || {
                    lines(&body.entries, |entry| format!("{map}[{key}] = {}", value(entry)))
                })?;
            }
            Verb::Dump { map: MapName { app, map }, all } => {
                let (mut entries, mut from) = (Vec::new(), Some(0));
                while let Some(key) = from {
                    let page = arbiter.map_dump(&app, &map, key)?;
                    entries.extend(page.entries.into_iter().filter(|e| all || !is_zero(e)));
                    from = page.next;
                }
                let body = Body { app: &app, map: &map, entries };
                context.output.print(&body, || text(&body.entries))?;
            }
        }
        Ok(0)
    }
}

fn text(entries: &[MapEntry]) -> String {
    table(
        ["KEY", "VALUE"],
        entries.iter().map(|entry| [entry.key.to_string(), value(entry)]).collect(),
    )
}

fn lines(entries: &[MapEntry], line: impl Fn(&MapEntry) -> String) -> String {
    entries.iter().map(|entry| line(entry) + "\n").collect()
}

fn value(entry: &MapEntry) -> String {
    entry.value.map_or_else(|| entry.bytes.clone(), |value| value.to_string())
}

fn is_zero(entry: &MapEntry) -> bool {
    match entry.value {
        Some(value) => value == 0,
        None => entry.bytes.bytes().all(|digit| digit == b'0'),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: u32, value: Option<u64>, bytes: &str) -> MapEntry {
        MapEntry { key, value, bytes: bytes.to_owned() }
    }

    #[test]
    fn values_are_integers_where_they_have_8_bytes_and_bytes_elsewhere() {
        let entries = [entry(0, Some(7), "0700000000000000"), entry(11, None, "0a0b")];
        assert_eq!(text(&entries), "KEY  VALUE\n0    7\n11   0a0b\n");
    }

    #[test]
    fn an_entry_that_was_never_written_is_zero() {
        assert!(is_zero(&entry(0, Some(0), "0000000000000000")));
        assert!(is_zero(&entry(0, None, "0000")));
        assert!(!is_zero(&entry(0, None, "0010")));
    }
}
