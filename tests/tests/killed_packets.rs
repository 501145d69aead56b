//! What is left of calls at `socket-select` that are killed, or fail, at any of their steps.

mod killed;

use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::process::Command;

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use syrup_protocol::{Deployment, Facts, Registration, Result};
use syrup_tests::{Need, as_user, own_network, require};

use self::killed::{Next, OWNER, Operation, Policy, Scene, Stage, State};

const PORT: u16 = 7200;
const FOREIGN_PORT: u16 = 7201;
/// That of a server which has ended.
const ENDED_PORT: u16 = 7202;
/// So many that a hash gives each of two sockets some.
const FLOWS: usize = 24;

const PID: &str = "SYRUP_TEST_KILLED_PID";
const SOCKETS: &str = "SYRUP_TEST_KILLED_SOCKETS";

/// The owner's two sockets, and two of a stranger's group, which has a program of its own.
struct Sockets {
    pid: u32,
    own: Vec<UdpSocket>,
    foreign: Vec<UdpSocket>,
    senders: Vec<UdpSocket>,
}

impl Sockets {
    fn new() -> Self {
        own_network();
        let own = as_user(OWNER, || group(PORT));
        let foreign = group(FOREIGN_PORT);
        always_the_second(&foreign[0]);
        let senders =
            (0..FLOWS).map(|_| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()).collect();
        Self { pid: std::process::id(), own, foreign, senders }
    }

    /// Those of the parent, in a child.
    fn of_parent() -> Self {
        let pid = std::env::var(PID).unwrap().parse().unwrap();
        let parent = pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap();
        let socket = |fd: &str| {
            let fd = pidfd_getfd(&parent, fd.parse().unwrap(), PidfdGetfdFlags::empty());
            UdpSocket::from(fd.unwrap())
        };
        Self {
            pid: pid as u32,
            own: std::env::var(SOCKETS).unwrap().split(',').map(socket).collect(),
            foreign: Vec::new(),
            senders: Vec::new(),
        }
    }

    /// How many of the flows each socket of a group gets.
    fn spread(&self, port: u16, group: &[UdpSocket]) -> Vec<usize> {
        for sender in &self.senders {
            sender.send_to(b"x", (Ipv4Addr::LOCALHOST, port)).unwrap();
        }
        let received =
            |socket: &UdpSocket| std::iter::from_fn(|| socket.recv(&mut [0; 8]).ok()).count();
        let counts: Vec<usize> = group.iter().map(received).collect();
        // On loopback what was sent has arrived.
        assert_eq!(counts.iter().sum::<usize>(), FLOWS, "lost, or not yet there: {counts:?}");
        counts
    }
}

fn group(port: u16) -> Vec<UdpSocket> {
    let socket = || {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None).unwrap();
        sockopt::set_socket_reuseport(&socket, true).unwrap();
        let address = std::net::SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        rustix::net::bind(&socket, &address).unwrap();
        UdpSocket::from(socket)
    };
    vec![socket(), socket()]
}

/// Attaches a program that is not ours to a group.
fn always_the_second(socket: &UdpSocket) {
    let mut code =
        [libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: 1 }];
    let program = libc::sock_fprog { len: 1, filter: code.as_mut_ptr() };
    // SAFETY: the program and its code live for the call.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            size_of_val(&program) as u32,
        )
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

impl Scene for Sockets {
    const HOOK: &'static str = "socket-select";

    /// The first one chooses the last socket, the second one the first socket.
    fn source(policy: Policy, map: &str) -> String {
        let choice = match policy {
            Policy::First => "syrup_num_executors() - 1",
            Policy::Second => "0",
        };
        format!(
            "#include <syrup/packet.h>\nSYRUP_MAP({map}, 4);\n\
             __s32 schedule(void *s, void *e)\n{{\n\t(void)s;\n\t(void)e;\n\
             \treturn syrup_map_lookup(&{map}, 0) ? {choice} : -1;\n}}\n"
        )
    }

    fn target(&self) -> Facts {
        Facts::from([("port".into(), vec![PORT].into()), ("pid".into(), self.pid.into())])
    }

    fn until_it_ends(&self, load: &dyn Fn(Facts) -> Result<()>) -> Result<()> {
        let sockets = as_user(OWNER, || group(ENDED_PORT));
        let mut holder = Command::new("sleep");
        holder.arg("60");
        if let Ok([first, second]) = <[UdpSocket; 2]>::try_from(sockets) {
            holder.stdin(OwnedFd::from(first)).stdout(OwnedFd::from(second));
        }
        let mut child = holder.spawn().unwrap();
        // It alone has them.
        drop(holder);
        let loaded = load(Facts::from([
            ("port".into(), vec![ENDED_PORT].into()),
            ("pid".into(), child.id().into()),
        ]));
        child.kill().unwrap();
        child.wait().unwrap();
        loaded
    }

    fn member(&self, number: usize) -> Registration {
        Registration::Socket(self.own[number].as_fd().try_clone_to_owned().unwrap())
    }

    fn members(deployment: &Deployment) -> usize {
        deployment.executors as usize
    }

    fn expected(state: State) -> Option<usize> {
        state.0.filter(|&(_, members)| members > 0).map(|(policy, members)| match policy {
            Policy::First => members - 1,
            Policy::Second => 0,
        })
    }

    fn decides(&self) -> Option<usize> {
        let counts = self.spread(PORT, &self.own);
        counts.iter().position(|&count| count == FLOWS)
    }

    fn tell(&self, child: &mut Command) {
        let fds: Vec<String> = self.own.iter().map(|s| s.as_raw_fd().to_string()).collect();
        child.env(SOCKETS, fds.join(",")).env(PID, self.pid.to_string());
    }

    fn assert_foreign_untouched(&self) {
        assert_eq!(self.spread(FOREIGN_PORT, &self.foreign), [0, FLOWS]);
    }
}

/// Killed before each of an operation's steps, of which there are so many at least, and
/// refused each.
fn leaves_the_old_or_the_new(operation: Operation, least: usize) {
    if !require(&[Need::Root]) {
        return;
    }
    let mut stage = Stage::new(Sockets::new());
    stage.play(operation, least, |step, _| match operation {
        // Its steps are a load's but for one: two of the four after each.
        Operation::Reload => Next::ALL.as_chunks::<2>().0[step % 2].as_slice(),
        _ => &Next::ALL,
    });
    stage.play_refused(operation, least, |_, _| true);
}

#[test]
fn a_load_that_is_killed_or_refused_leaves_nothing_or_all() {
    leaves_the_old_or_the_new(Operation::Load, 40);
}

#[test]
fn one_in_the_place_of_an_ended_deployment_leaves_that_or_all() {
    leaves_the_old_or_the_new(Operation::Reload, 40);
}

#[test]
fn a_replacement_that_is_killed_or_refused_leaves_the_old_or_the_new() {
    leaves_the_old_or_the_new(Operation::Replace, 15);
}

#[test]
fn a_registration_that_is_killed_or_refused_leaves_the_socket_in_or_out() {
    leaves_the_old_or_the_new(Operation::Register, 15);
}

#[test]
fn a_socket_that_is_let_go_by_a_call_that_is_killed_or_refused_is_in_or_out() {
    leaves_the_old_or_the_new(Operation::Unregister, 15);
}

#[test]
fn the_last_socket_that_is_let_go_by_such_a_call_is_in_or_out() {
    leaves_the_old_or_the_new(Operation::UnregisterLast, 20);
}

#[test]
fn an_unload_that_is_killed_or_refused_leaves_all_or_nothing() {
    leaves_the_old_or_the_new(Operation::Unload, 15);
}

#[test]
fn what_another_attached_stays_when_a_load_dies_before_it_attaches() {
    if !require(&[Need::Root]) {
        return;
    }
    let stage = Stage::new(Sockets::new());
    let steps = stage.steps(Operation::Load);
    let attach = steps.iter().position(|step| step.starts_with("attach")).unwrap();
    let own = &stage.scene.own;
    always_the_second(&own[0]);
    stage.die(Operation::Load, attach);
    stage.unload_all();
    assert_eq!(stage.scene.spread(PORT, own), [0, FLOWS], "its program is gone");
}

#[test]
#[ignore = "run by leaves_the_old_or_the_new"]
fn child_makes_a_call() {
    killed::make_a_call(Sockets::of_parent);
}
