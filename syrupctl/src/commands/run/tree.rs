//! The sockets and threads of a process and of what it started.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::{AsFd as _, OwnedFd};

use procfs::net::TcpState;
use procfs::process::{FDTarget, Process, all_processes};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use syrup_hook::Proto;
use syrup_protocol::{Code, Failure, Result};

/// A socket that waits for packets on a port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct BoundSocket {
    /// Names it while it exists.
    pub inode: u64,
    /// A process that has it open.
    pub pid: i32,
    /// Its number there.
    pub fd: i32,
}

impl BoundSocket {
    /// The same socket in this process.
    pub fn duplicate(&self) -> Result<OwnedFd> {
        let gone = |e: rustix::io::Errno| {
            let message = format!("cannot take socket {} of process {}: {e}", self.fd, self.pid);
            Failure::new(Code::NotPermitted, message)
        };
        let pid = Pid::from_raw(self.pid).ok_or(rustix::io::Errno::SRCH).map_err(gone)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(gone)?;
        pidfd_getfd(pidfd.as_fd(), self.fd, PidfdGetfdFlags::empty()).map_err(gone)
    }
}

/// Sockets bound to one of `ports` (TCP: listening there) of `root` and its descendants,
/// each once. Processes that end meanwhile have none.
pub fn bound_sockets(root: i32, protos: &[Proto], ports: &[u16]) -> Vec<BoundSocket> {
    let mut bound = BTreeMap::new();
    for process in descendants(root) {
        // The command may have a network namespace of its own.
        let of_proto = |&proto: &Proto| inodes(&process, proto, ports);
        let inodes: HashSet<u64> = protos.iter().flat_map(of_proto).collect();
        let Ok(fds) = process.fd() else { continue };
        for fd in fds.flatten() {
            if let FDTarget::Socket(inode) = fd.target
                && inodes.contains(&inode)
            {
                let socket = BoundSocket { inode, pid: process.pid, fd: fd.fd };
                bound.entry(inode).or_insert(socket);
            }
        }
    }
    bound.into_values().collect()
}

/// The process that has most of the sockets.
pub fn main_owner(sockets: &[BoundSocket]) -> Option<i32> {
    let mut counts: HashMap<i32, usize> = HashMap::new();
    for socket in sockets {
        *counts.entry(socket.pid).or_default() += 1;
    }
    counts.into_iter().max_by_key(|(pid, count)| (*count, -pid)).map(|(pid, _)| pid)
}

/// The threads of `root` and its descendants.
pub fn threads(root: i32) -> Vec<i32> {
    descendants(root)
        .iter()
        .filter_map(|process| process.tasks().ok())
        .flat_map(|tasks| tasks.flatten().map(|task| task.tid))
        .collect()
}

fn inodes(process: &Process, proto: Proto, ports: &[u16]) -> HashSet<u64> {
    let here = |address: std::net::SocketAddr| ports.contains(&address.port());
    match proto {
        Proto::Udp => {
            let sockets = process.udp().into_iter().chain(process.udp6()).flatten();
            sockets.filter(|s| here(s.local_address)).map(|s| s.inode).collect()
        }
        Proto::Tcp => {
            let sockets = process.tcp().into_iter().chain(process.tcp6()).flatten();
            sockets
                .filter(|s| here(s.local_address) && s.state == TcpState::Listen)
                .map(|s| s.inode)
                .collect()
        }
    }
}

/// `root` and every process below it.
fn descendants(root: i32) -> Vec<Process> {
    let Ok(all) = all_processes() else { return vec![] };
    let mut children: HashMap<i32, Vec<Process>> = HashMap::new();
    for process in all.flatten() {
        if let Ok(stat) = process.stat() {
            children.entry(stat.ppid).or_default().push(process);
        }
    }
    let mut found: Vec<Process> = Process::new(root).into_iter().collect();
    let mut next = 0;
    while let Some(pid) = found.get(next).map(|process| process.pid) {
        found.extend(children.remove(&pid).unwrap_or_default());
        next += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};
    use std::os::fd::AsRawFd as _;

    use super::*;

    fn me() -> i32 {
        std::process::id().cast_signed()
    }

    #[test]
    fn bound_sockets_are_found_by_protocol_and_port() {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = udp.local_addr().unwrap().port();
        let found = bound_sockets(me(), &[Proto::Udp], &[port]);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].fd, udp.as_raw_fd());
        let copy = UdpSocket::from(found[0].duplicate().unwrap());
        assert_eq!(copy.local_addr().unwrap(), udp.local_addr().unwrap());

        let tcp = TcpListener::bind("[::1]:0").unwrap();
        let port = tcp.local_addr().unwrap().port();
        assert_eq!(bound_sockets(me(), &[Proto::Tcp], &[port])[0].fd, tcp.as_raw_fd());
        drop(tcp);
        assert_eq!(bound_sockets(me(), &[Proto::Tcp], &[port]), []);
    }

    #[test]
    fn descendants_are_part_of_the_tree() {
        let mut child = std::process::Command::new("sh")
            .args(["-c", "sleep 1000 & echo $!; wait"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = child.stdout.as_mut().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).unwrap();
        let grandchild: i32 = line.trim().parse().unwrap();
        assert!(threads(me()).contains(&grandchild));
        rustix::process::kill_process(
            Pid::from_raw(grandchild).unwrap(),
            rustix::process::Signal::KILL,
        )
        .unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn the_owner_of_most_sockets_is_the_main_one() {
        let socket = |inode, pid| BoundSocket { inode, pid, fd: 3 };
        assert_eq!(main_owner(&[socket(1, 10), socket(2, 11), socket(3, 11)]), Some(11));
        assert_eq!(main_owner(&[socket(1, 10), socket(2, 11)]), Some(10));
        assert_eq!(main_owner(&[]), None);
    }
}
