//! One file per subcommand. `run` returns the exit code of a command that did
//! its work; [`syrup_protocol::Failure`] carries the one of a command that did not.

pub mod apply;
pub mod check;
pub mod completions;
pub mod doctor;
pub mod gc;
pub mod hooks;
pub mod list;
pub mod load;
pub mod man;
pub mod map;
pub mod policies;
pub mod replace;
pub mod run;
pub mod set;
pub mod show;
pub mod status;
pub mod unload;
