//! What tells that a server's sockets may be others than before: a count of all that happens
//! to reuseport groups, of any process in any network namespace.

use std::os::fd::AsFd as _;

use libbpf_rs::{Link, MapCore as _, ObjectBuilder};
use syrup_hook::sys::Map;
use syrup_hook::{Changes, Error, Result};

const OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/socket_select_changes.o"));
const COUNT: &str = "syrup_changes";

/// Programs that count, for as long as the value lives.
#[derive(Debug)]
pub(crate) struct GroupChanges {
    count: Map,
    _programs: Vec<Link>,
}

impl GroupChanges {
    /// Begins to count.
    ///
    /// # Errors
    /// [`Error::Kernel`] where the kernel's functions cannot be followed (no BTF, no
    /// CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS, no CAP_PERFMON).
    pub fn new() -> Result<Self> {
        let failed = |e| Error::bpf("count changes of reuseport groups", &e);
        let opened = ObjectBuilder::default().open_memory(OBJECT).map_err(failed)?;
        let object = opened.load().map_err(failed)?;
        let attached = object.progs_mut().map(|program| program.attach());
        let programs = attached.collect::<Result<_, _>>().map_err(failed)?;
        let count = object
            .maps()
            .find(|map| map.name() == COUNT)
            .ok_or_else(|| Error::Defect(format!("map '{COUNT}' is not in its object")))?;
        let count = count
            .as_fd()
            .try_clone_to_owned()
            .map_err(|e| Error::kernel("duplicate a map's descriptor", e))?;
        Ok(Self { count: Map::new(count)?, _programs: programs })
    }
}

impl Changes for GroupChanges {
    fn count(&self) -> Result<u64> {
        let count = self.count.lookup(&0u32.to_ne_bytes())?;
        let count = count.and_then(|bytes| bytes.try_into().ok());
        count.map(u64::from_ne_bytes).ok_or_else(|| Error::Defect(format!("{COUNT} is empty")))
    }
}
