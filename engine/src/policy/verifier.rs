//! Reading the verifier's log: which line of the user's file it refused, and why.

use syrup_hook::{verifier_lines, verifier_tail};
use syrup_protocol::{Code, Failure};

/// Turns a verifier log into an error that points at the user's line.
/// `source` is the user's text, to quote the line; kernels since 6.10 print
/// `; text @ file:line` above each group of instructions.
pub(crate) fn error(file_name: &str, log: &str, source: Option<&str>) -> Failure {
    let lines = verifier_lines(log);
    let reason = reason(&lines);
    let place = lines.iter().rev().find_map(|line| place(line, file_name));
    let mut detail = String::new();
    if let Some(Place { file, number, quoted }) = &place {
        let text = source.and_then(|s| s.lines().nth(number.checked_sub(1)?)).unwrap_or(quoted);
        detail.push_str(&format!("{file}:{number}: {}\n", text.trim()));
    }
    detail.push_str(&verifier_tail(log));
    let at = place.map_or_else(
        || file_name.to_owned(),
        |Place { file, number, .. }| format!("{file}:{number}"),
    );
    Failure::new(
        Code::VerifierRejected,
        format!("{at}: the kernel's verifier refused it: {reason}"),
    )
    .detail(detail.trim_end().to_owned())
    .advise(advice(reason))
}

/// What the verifier objected to: the last line that is no instruction,
/// register dump or source quote. Remarks that only explain the line before
/// them ("R1 offset is outside of the packet") give way to it. Newer kernels tell of an
/// endless loop in the line of its instruction.
fn reason<'a>(lines: &[&'a str]) -> &'a str {
    const ENDLESS: &str = "infinite loop detected";
    if let Some(at) = lines.iter().find_map(|line| line.find(ENDLESS).map(|at| &line[at..])) {
        return at;
    }
    let mut remarks = lines.iter().rev().filter(|line| {
        let first = line.trim_start();
        let instruction = first
            .split_once(':')
            .is_some_and(|(n, _)| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
        !instruction
            && !first.starts_with(';')
            && !first.starts_with("from ")
            && !first.starts_with("cur state:")
            && !first.starts_with("old state:")
    });
    let last = remarks.next().copied().unwrap_or("no reason given");
    match remarks.next() {
        Some(before) if before.starts_with("invalid access to") => before,
        _ => last,
    }
}

/// A line of the user's.
#[derive(Debug, PartialEq)]
struct Place<'a> {
    file: &'a str,
    number: usize,
    /// As the object has it.
    quoted: &'a str,
}

/// What `; text @ file:line` names when the file is the user's, or what the user's object was
/// made of.
fn place<'a>(line: &'a str, file_name: &'a str) -> Option<Place<'a>> {
    let (quoted, at) = line.strip_prefix(';')?.rsplit_once(" @ ")?;
    let (file, number) = at.rsplit_once(':')?;
    let number = number.parse().ok()?;
    let name = |path: &'a str| path.rsplit('/').next().unwrap_or(path);
    if name(file) == name(file_name) {
        return Some(Place { file: file_name, number, quoted });
    }
    let stem = name(file_name).strip_suffix(".o")?;
    (name(file).strip_suffix(".c") == Some(stem)).then_some(Place { file, number, quoted })
}

fn advice(reason: &str) -> &'static str {
    if reason.contains("infinite loop")
        || reason.contains("too large")
        || reason.contains("too complex")
        || reason.contains("back-edge")
        || reason.contains("loop is not bounded")
    {
        "give every loop a constant upper bound"
    } else if reason.contains("prohibited") || reason.contains("leaks addr") {
        "what an ordinary user deploys is verified more strictly than what root does: packets, \
         variables and the stack are read at constant offsets only, and addresses are neither \
         kept nor subtracted; unroll the loop, or use a Map"
    } else if reason.contains("invalid access to packet") {
        "read packets with SYRUP_READ(pkt_start, pkt_end, offset, &var): it checks the bounds"
    } else if reason.contains("map_value") || reason.contains("mem_or_null") {
        "check what syrup_map_lookup() returned against NULL before using it"
    } else {
        "the lines above are the verifier's own; 'syrupctl check FILE --hook HOOK' repeats them without loading"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "0: R1=ctx() R10=fp0\n\
        ; return *(__u32 *)(pkt_start + 100); @ peek.c:5\n\
        7: (61) r0 = *(u32 *)(r1 +100)\n\
        invalid access to packet, off=100 size=4, R1(id=0,off=100,r=0)\n\
        R1 offset is outside of the packet\n\
        processed 8 insns (limit 1000000) max_states_per_insn 0\n";

    #[test]
    fn it_points_at_the_users_line_and_quotes_it() {
        let source = "a\nb\nc\nd\n  return *(__u32 *)(pkt_start + 100);\n";
        let error = error("dir/peek.c", LOG, Some(source));
        assert_eq!(error.code, Code::VerifierRejected);
        assert!(error.message.starts_with("dir/peek.c:5: "), "{}", error.message);
        assert!(error.message.contains("invalid access to packet, off=100"), "{}", error.message);
        let detail = error.detail.unwrap();
        assert!(detail.starts_with("dir/peek.c:5: return *(__u32 *)"), "{detail}");
    }

    #[test]
    fn lines_of_other_files_are_not_the_users() {
        assert_eq!(place("; x @ packet.h:3", "peek.c"), None);
        let found = |file, number| Some(Place { file, number, quoted: " a @ b" });
        assert_eq!(place("; a @ b @ peek.c:9", "dir/peek.c"), found("dir/peek.c", 9));
        assert_eq!(place("7: (61) r0 = 1", "peek.c"), None);
        // Of an object: what it was made of.
        assert_eq!(place("; a @ b @ src/peek.c:9", "dir/peek.o"), found("src/peek.c", 9));
        assert_eq!(place("; a @ b @ policy.bpf.c:9", "dir/peek.o"), None);
    }

    #[test]
    fn an_endless_loop_gets_its_own_advice() {
        let error = error(
            "p.c",
            "; while @ p.c:2\ninfinite loop detected at insn 3\ncur state: R0=1\nold state: R0=1\n",
            None,
        );
        assert_eq!(error.advice.unwrap(), "give every loop a constant upper bound");
        // Since 6.18, behind the instruction.
        let log = "; while @ p.c:2\n9: (56) if w1 != 0x0 goto pc-6 infinite loop detected at insn \
                   4\n frame1: R1=pkt(r=0) R10=fp0\n";
        let error = super::error("p.c", log, None);
        assert!(error.message.ends_with(": infinite loop detected at insn 4"), "{}", error.message);
        assert_eq!(error.advice.unwrap(), "give every loop a constant upper bound");
    }

    #[test]
    fn what_only_root_may_do_is_said_to_be_that() {
        let log = "; b[i] @ p.c:2\n9: (0f) r1 += r2\nR1 has pointer with unsupported alu operation, \
                   pointer arithmetic with it prohibited for !root\n";
        assert!(error("p.c", log, None).advice.unwrap().contains("at constant offsets only"));
    }
}
