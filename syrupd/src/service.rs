//! From one varlink call to one reply, whoever the arbiter is.

use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::{RawValue, to_raw_value};
use syrup_protocol::varlink::{
    DESCRIPTION, FAILED, INTERFACE, InterfaceRef, InterfaceText, ReceivedCall, SERVICE, SentReply,
    ServiceInfo,
};
use syrup_protocol::wire::{Message, encode};
use syrup_protocol::{Arbiter, Call, Code, Failure};

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

/// A result's JSON and descriptors.
type Answered = std::result::Result<(Box<RawValue>, Vec<OwnedFd>), Refusal>;

/// Whether a message must wait for its turn. What only reads, what every varlink service
/// must tell of itself, and garbage, is answered beside a load that takes its time.
pub(crate) fn is_queued(message: &Message) -> bool {
    serde_json::from_slice(&message.json).is_ok_and(|call: ReceivedCall<'_>| {
        let (interface, method) = parts_of(&call.method);
        interface == INTERFACE && Call::is_queued(method)
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
    let (interface, method) = parts_of(&call.method);
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
    fds: Vec<OwnedFd>,
    arbiter: impl FnOnce() -> Box<dyn Arbiter>,
) -> Answered {
    let asked = Call::read(method, text(call)).ok_or_else(|| unknown(call))?;
    let mut asked = asked.map_err(|e| invalid(&e))?;
    asked.attach(fds);
    let mut reply = arbiter().answer(asked)?;
    let fds = reply.detach();
    with_fds(reply, fds)
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

/// A method's interface and its name there.
fn parts_of(method: &str) -> (&str, &str) {
    method.rsplit_once('.').unwrap_or_default()
}

fn text<'a>(call: &ReceivedCall<'a>) -> &'a str {
    call.parameters.map_or("{}", RawValue::get)
}

fn parameters<T: DeserializeOwned>(call: &ReceivedCall<'_>) -> std::result::Result<T, Refusal> {
    serde_json::from_str(text(call)).map_err(|e| invalid(&e))
}

fn json(result: impl Serialize) -> Answered {
    with_fds(result, Vec::new())
}

fn with_fds(result: impl Serialize, fds: Vec<OwnedFd>) -> Answered {
    to_raw_value(&result).map(|text| (text, fds)).map_err(|e| {
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
        Ok((parameters, fds)) => (encode(&SentReply { error: None, parameters }), fds),
        Err(Refusal::Arbiter(error)) => {
            (encode(&SentReply { error: Some(FAILED), parameters: error }), Vec::new())
        }
        Err(Refusal::Varlink { name, key, value }) => {
            let parameters = std::collections::BTreeMap::from([(key, value)]);
            (encode(&SentReply { error: Some(name), parameters }), Vec::new())
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

    /// The description's methods, as `zlink` reads them, and the names of their parameters.
    fn described() -> Vec<(String, BTreeSet<String>)> {
        let interface: zlink::idl::Interface<'_> = DESCRIPTION.try_into().unwrap();
        assert_eq!(interface.name(), INTERFACE);
        let names = |method: &zlink::idl::Method<'_>| {
            method.inputs().map(|input| input.name().to_string()).collect()
        };
        interface.methods().map(|method| (method.name().to_string(), names(method))).collect()
    }

    #[test]
    fn what_is_described_is_what_can_be_asked() {
        let described: Vec<String> = described().into_iter().map(|(method, _)| method).collect();
        assert_eq!(described, Call::METHODS);
    }

    /// A parameter that no request has is refused with the names of those it has.
    #[test]
    fn every_call_takes_the_parameters_that_are_described() {
        for (method, described) in described().into_iter().filter(|(_, names)| !names.is_empty()) {
            let refused = Call::read(&method, r#"{"no such":0}"#).unwrap().unwrap_err().to_string();
            let taken = refused.split('`').skip(3).step_by(2).map(str::to_owned).collect();
            assert_eq!(described, taken, "{method}: {refused}");
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
