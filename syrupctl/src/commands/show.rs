//! `syrupctl show`

use std::time::SystemTime;

use clap::Args;
use syrup_protocol::{AppInfo, MapInfo, Result};

use crate::args::app_name;
use crate::context::Context;
use crate::deployment;
use crate::output::table;

const EXAMPLES: &str = "\
Examples:
  syrupctl show rocksdb
      Policies, executors, counters and Maps of app 'rocksdb'.

  syrupctl show rocksdb -o json | jq -r '.maps[].path'
      Where its Maps are pinned.";

/// Show everything about one app
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Show {
    /// The app
    #[arg(value_parser = app_name)]
    app: String,
}

impl Show {
    pub fn run(self, context: &Context) -> Result<u8> {
        let app = context.arbiter()?.show(&self.app)?;
        context.output.print(&app, || text(&app, SystemTime::now()))?;
        Ok(0)
    }
}

fn text(app: &AppInfo, now: SystemTime) -> String {
    let mut text = format!("app {}, owned by user {}\n", app.app, app.uid);
    for deployment in &app.deployments {
        text.push('\n');
        text.push_str(&deployment::block(deployment, now));
    }
    if !app.maps.is_empty() {
        text.push('\n');
        text.push_str(&maps(&app.maps));
    }
    text
}

fn maps(maps: &[MapInfo]) -> String {
    table(
        ["MAP", "ENTRIES", "VALUE BYTES", "PATH"],
        maps.iter()
            .map(|map| {
                [
                    map.name.clone(),
                    map.entries.to_string(),
                    map.value_bytes.to_string(),
                    map.path.clone(),
                ]
            })
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_app_is_shown_with_its_deployments_and_maps() {
        let app = AppInfo {
            app: "rocksdb".to_owned(),
            uid: 0,
            deployments: vec![deployment::tests::example()],
            maps: vec![MapInfo {
                name: "request_type".to_owned(),
                entries: 64,
                value_bytes: 8,
                path: "/sys/fs/bpf/syrup/rocksdb/maps/request_type".to_owned(),
            }],
        };
        let text = text(&app, SystemTime::UNIX_EPOCH);
        assert!(
            text.starts_with("app rocksdb, owned by user 0\n\nsocket-select\n  state"),
            "{text}"
        );
        assert!(
            text.ends_with(
                "MAP           ENTRIES  VALUE BYTES  PATH\n\
                 request_type  64       8            /sys/fs/bpf/syrup/rocksdb/maps/request_type\n"
            ),
            "{text}"
        );
    }
}
