//! From one varlink call to one reply, whoever the arbiter is.

use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use syrup_protocol::reply::{
    AllUnloaded, Deployed, Deployments, Entry, Hooks, Policies, Registered, Shown, Unloaded,
};
use syrup_protocol::request::{AppRef, DeploymentRef, MapDump, MapGet, MapRef, MapSet, Register};
use syrup_protocol::varlink::{
    DESCRIPTION, FAILED, INTERFACE, InterfaceRef, InterfaceText, Nothing, ReceivedCall, Reply,
    SERVICE, ServiceInfo,
};
use syrup_protocol::wire::{Message, encode};
use syrup_protocol::{Arbiter, Code, Failure, Kind, LoadRequest, Registration, ReplaceRequest};

/// What goes back: the reply's bytes (none for a one-way call) and descriptors.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) bytes: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
}

/// Why a call got no result: the arbiter's reason, or varlink's.
enum Refusal {
    Arbiter(Failure),
    Varlink { name: &'static str, key: &'static str, value: String },
}

impl From<Failure> for Refusal {
    fn from(error: Failure) -> Self {
        Self::Arbiter(error)
    }
}

/// The parameters of a method without any: what a newer client narrows a call down with is
/// refused rather than not heard.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NoParameters {}

/// A result's JSON and descriptors.
type Answered = std::result::Result<(serde_json::Value, Vec<OwnedFd>), Refusal>;

/// Methods that change something, or take their time.
const CHANGES: &[&str] = &["Load", "Replace", "Unload", "UnloadAll", "Register"];

/// Whether a message must wait for its turn. What only reads, what every varlink service
/// must tell of itself, and garbage, is answered beside a load that takes its time.
pub(crate) fn changes(message: &Message) -> bool {
    serde_json::from_slice(&message.json).is_ok_and(|call: ReceivedCall<'_>| {
        let interface = interface_of(&call.method);
        let method = call.method.get(interface.len() + 1..).unwrap_or_default();
        interface == INTERFACE && CHANGES.contains(&method)
    })
}

/// Answers `message`. `arbiter` is made only if it is needed; if it panics, the
/// caller is told so and nobody else notices.
pub(crate) fn answer(message: Message, arbiter: impl FnOnce() -> Box<dyn Arbiter>) -> Answer {
    let Message { json, fds } = message;
    let call: ReceivedCall<'_> = match serde_json::from_slice(&json) {
        Ok(call) => call,
        Err(e) => return reply(Err(invalid(&e))),
    };
    let (oneway, method) = (call.oneway, call.method.clone());
    let answered = catch_unwind(AssertUnwindSafe(|| dispatch(&call, fds, arbiter)));
    let answered = answered.unwrap_or_else(|_| {
        Err(Failure::new(Code::Internal, format!("{method}: a defect of the daemon"))
            .advise("report it with the daemon's log")
            .into())
    });
    if let Err(Refusal::Arbiter(error)) = &answered {
        log::info!("{method}: {error}");
    }
    if oneway { Answer::default() } else { reply(answered) }
}

/// The reply to a caller whose message could not even be read.
pub(crate) fn refusal(error: Failure) -> Answer {
    reply(Err(error.into()))
}

fn dispatch(
    call: &ReceivedCall<'_>,
    fds: Vec<OwnedFd>,
    arbiter: impl FnOnce() -> Box<dyn Arbiter>,
) -> Answered {
    let interface = interface_of(&call.method);
    let method = call.method.get(interface.len() + 1..).unwrap_or_default();
    match interface {
        INTERFACE => arbitrate(method, call, fds, arbiter),
        SERVICE => describe(method, call),
        other => Err(Refusal::Varlink {
            name: "org.varlink.service.InterfaceNotFound",
            key: "interface",
            value: other.to_owned(),
        }),
    }
}

fn arbitrate(
    method: &str,
    call: &ReceivedCall<'_>,
    mut fds: Vec<OwnedFd>,
    arbiter: impl FnOnce() -> Box<dyn Arbiter>,
) -> Answered {
    match method {
        "Load" => {
            let request: LoadRequest = parameters(call)?;
            json(Deployed { deployment: arbiter().load(&request)? })
        }
        "Replace" => {
            let request: ReplaceRequest = parameters(call)?;
            json(Deployed { deployment: arbiter().replace(&request)? })
        }
        "Unload" => {
            let DeploymentRef { hook, app } = parameters(call)?;
            arbiter().unload(&hook, &app)?;
            json(Nothing {})
        }
        "UnloadAll" => {
            let NoParameters {} = parameters(call)?;
            let unloaded = arbiter().unload_all()?;
            let unloaded = unloaded.into_iter().map(|(app, hook)| Unloaded { app, hook }).collect();
            json(AllUnloaded { unloaded })
        }
        "List" => {
            let NoParameters {} = parameters(call)?;
            json(Deployments { deployments: arbiter().list()? })
        }
        "Show" => {
            let AppRef { app } = parameters(call)?;
            json(Shown { app: arbiter().show(&app)? })
        }
        "Hooks" => {
            let NoParameters {} = parameters(call)?;
            json(Hooks { hooks: arbiter().hooks()? })
        }
        "Policies" => {
            let NoParameters {} = parameters(call)?;
            json(Policies { policies: arbiter().policies()? })
        }
        "PolicyOpen" => {
            let DeploymentRef { hook, app } = parameters(call)?;
            descriptor(arbiter().policy_open(&app, &hook)?)
        }
        "MapGet" => {
            let MapGet { app, map, key } = parameters(call)?;
            json(Entry { entry: arbiter().map_get(&app, &map, key)? })
        }
        "MapSet" => {
            let MapSet { app, map, key, value } = parameters(call)?;
            arbiter().map_set(&app, &map, key, value)?;
            json(Nothing {})
        }
        "MapDump" => {
            let MapDump { app, map, from } = parameters(call)?;
            json(arbiter().map_dump(&app, &map, from)?)
        }
        "MapOpen" => {
            let MapRef { app, map } = parameters(call)?;
            descriptor(arbiter().map_open(&app, &map)?)
        }
        "Register" => {
            let Register { app, hook, kind, tid, index } = parameters(call)?;
            let what = match (kind, tid, fds.pop()) {
                (Kind::Socket, None, Some(socket)) if fds.is_empty() => {
                    Registration::Socket(socket)
                }
                (Kind::Thread, Some(tid), None) => Registration::Thread { tid },
                (Kind::Socket, ..) => {
                    let wrong = "a socket is registered by one descriptor beside the call";
                    return Err(Failure::new(Code::Usage, wrong).into());
                }
                (Kind::Thread, ..) => {
                    let wrong = "a thread is registered by its tid, without descriptors";
                    return Err(Failure::new(Code::Usage, wrong).into());
                }
            };
            json(Registered { index: arbiter().register(&app, hook.as_deref(), what, index)? })
        }
        _ => Err(unknown(call)),
    }
}

fn describe(method: &str, call: &ReceivedCall<'_>) -> Answered {
    match method {
        "GetInfo" => json(ServiceInfo {
            vendor: "Syrup".to_owned(),
            product: "syrupd".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            url: String::new(),
            interfaces: vec![SERVICE.to_owned(), INTERFACE.to_owned()],
        }),
        "GetInterfaceDescription" => {
            let InterfaceRef { interface } = parameters(call)?;
            if interface == INTERFACE {
                return json(InterfaceText { description: DESCRIPTION.to_owned() });
            }
            Err(Refusal::Varlink {
                name: "org.varlink.service.InterfaceNotFound",
                key: "interface",
                value: interface,
            })
        }
        _ => Err(unknown(call)),
    }
}

fn interface_of(method: &str) -> &str {
    method.rsplit_once('.').map_or("", |(interface, _)| interface)
}

fn parameters<T: DeserializeOwned>(call: &ReceivedCall<'_>) -> std::result::Result<T, Refusal> {
    let raw = call.parameters.map_or("{}", |raw| raw.get());
    serde_json::from_str(raw).map_err(|e| invalid(&e))
}

fn json(result: impl Serialize) -> Answered {
    with_fds(result, Vec::new())
}

fn descriptor(fd: OwnedFd) -> Answered {
    with_fds(Nothing {}, vec![fd])
}

fn with_fds(result: impl Serialize, fds: Vec<OwnedFd>) -> Answered {
    serde_json::to_value(result).map(|value| (value, fds)).map_err(|e| {
        Failure::new(Code::Internal, format!("the result has no JSON form: {e}")).into()
    })
}

fn invalid(error: &serde_json::Error) -> Refusal {
    Refusal::Varlink {
        name: "org.varlink.service.InvalidParameter",
        key: "parameter",
        value: error.to_string(),
    }
}

fn unknown(call: &ReceivedCall<'_>) -> Refusal {
    Refusal::Varlink {
        name: "org.varlink.service.MethodNotFound",
        key: "method",
        value: call.method.clone(),
    }
}

fn reply(answered: Answered) -> Answer {
    let (bytes, fds) = match answered {
        Ok((parameters, fds)) => (encode(&Reply { error: None, parameters }), fds),
        Err(Refusal::Arbiter(error)) => {
            (encode(&Reply { error: Some(FAILED), parameters: error }), Vec::new())
        }
        Err(Refusal::Varlink { name, key, value }) => {
            let parameters = std::collections::BTreeMap::from([(key, value)]);
            (encode(&Reply { error: Some(name), parameters }), Vec::new())
        }
    };
    match bytes {
        Ok(bytes) => Answer { bytes, fds },
        Err(e) => {
            log::error!("a reply has no JSON form: {e}");
            Answer::default()
        }
    }
}

/// What the daemon serves: an arbiter for each caller.
pub trait Arbiters: Send + Sync + 'static {
    /// The arbiter on behalf of `caller`.
    fn as_caller(&self, caller: syrup_engine::Caller) -> Box<dyn Arbiter>;
}

impl Arbiters for syrup_engine::Engine {
    fn as_caller(&self, caller: syrup_engine::Caller) -> Box<dyn Arbiter> {
        Box::new(Self::as_caller(self, caller))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn nobody() -> Box<dyn Arbiter> {
        panic!("this call needs no arbiter")
    }

    fn ask(json: &str) -> String {
        let message = Message { json: json.as_bytes().to_vec(), fds: Vec::new() };
        let mut bytes = answer(message, nobody).bytes;
        assert_eq!(bytes.pop(), Some(0));
        String::from_utf8(bytes).unwrap()
    }

    /// `zlink` reads the description; each of its methods must be dispatched,
    /// which shows in that an empty call is refused by something later.
    #[test]
    fn every_described_method_is_served() {
        let interface: zlink::idl::Interface<'_> = DESCRIPTION.try_into().unwrap();
        assert_eq!(interface.name(), INTERFACE);
        let methods: BTreeSet<_> = interface.methods().map(|m| m.name().to_owned()).collect();
        assert_eq!(methods.len(), 14);
        for method in methods {
            let reply = ask(&format!(r#"{{"method":"{INTERFACE}.{method}"}}"#));
            assert!(!reply.contains("MethodNotFound"), "{method}: {reply}");
        }
    }

    #[test]
    fn garbage_is_answered_in_varlinks_terms() {
        for (call, error) in [
            ("", "InvalidParameter"),
            ("[1]", "InvalidParameter"),
            (r#"{"method":7}"#, "InvalidParameter"),
            (r#"{"method":""}"#, "InterfaceNotFound"),
            (r#"{"method":"Load"}"#, "InterfaceNotFound"),
            (r#"{"method":"org.syrup.Arbiter1."}"#, "MethodNotFound"),
            (r#"{"method":"org.syrup.Arbiter1.Load","parameters":{"hook":1}}"#, "InvalidParameter"),
            (r#"{"method":"org.syrup.Arbiter1.Load","parameters":[]}"#, "InvalidParameter"),
            (r#"{"method":"org.varlink.service.Nope"}"#, "MethodNotFound"),
            (
                &format!(r#"{{"method":"a.b","parameters":{}1"#, "[".repeat(100_000)),
                "InvalidParameter",
            ),
        ] {
            let reply = ask(call);
            let expected = format!("\"error\":\"org.varlink.service.{error}\"");
            assert!(reply.contains(&expected), "{call:.60}: {reply:.200}");
        }
    }

    /// `nobody` is asked: what is not understood must not be done half.
    #[test]
    fn a_parameter_that_is_not_known_is_refused() {
        let interface: zlink::idl::Interface<'_> = DESCRIPTION.try_into().unwrap();
        let load = r#"{"hook":"h","app":"a","policy":{"kind":"builtin","name":"p","later":1}}"#;
        let calls = interface.methods().map(|m| (m.name().to_string(), r#"{"later":"a"}"#));
        for (method, parameters) in calls.chain([("Load".to_owned(), load)]) {
            let call = format!(r#"{{"method":"{INTERFACE}.{method}","parameters":{parameters}}}"#);
            let reply = ask(&call);
            assert!(reply.contains("InvalidParameter"), "{method}: {reply}");
            assert!(reply.contains("later"), "{method}: {reply}");
        }
    }

    #[test]
    fn a_one_way_call_gets_no_reply() {
        let json = br#"{"method":"org.varlink.service.GetInfo","oneway":true}"#.to_vec();
        assert!(answer(Message { json, fds: Vec::new() }, nobody).bytes.is_empty());
    }
}
