//! Errors and remarks for people, on standard error.

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;

use clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
use syrup_protocol::{Code, Failure};

/// What failed; the compiler's or the verifier's words; what to do.
pub fn error(error: &Failure) {
    write(&text(error, io::stderr().is_terminal()));
}

/// What was typed makes no sense, or asked for help: printed in the same form
/// as every other error.
pub fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() || error.kind() == DisplayHelpOnMissingArgumentOrSubcommand {
        // A reader that went away has seen enough.
        let _ = error.print();
        return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(Code::Usage.exit_code()));
    }
    let text = error.render();
    let text = if io::stderr().is_terminal() { text.ansi().to_string() } else { text.to_string() };
    let closing = "For more information, try";
    let text: Vec<String> = text
        .trim_end()
        .lines()
        .map(|line| match line.strip_prefix(closing) {
            Some(_) => "help: the same with --help shows the options and examples".to_owned(),
            None => line.to_owned(),
        })
        .collect();
    write(&(text.join("\n") + "\n"));
    ExitCode::from(Code::Usage.exit_code())
}

/// A line that is no error and no data.
pub fn note(line: &str) {
    write(&format!("{line}\n"));
}

/// Something that needs attention but did not stop the command.
pub fn warning(line: &str, advice: Option<&str>) {
    let mut text = format!("warning: {line}\n");
    if let Some(advice) = advice {
        text.push_str(&format!("help: {advice}\n"));
    }
    write(&text);
}

fn text(error: &Failure, colour: bool) -> String {
    let (red, green, plain) =
        if colour { ("\x1b[1;31m", "\x1b[1;32m", "\x1b[0m") } else { ("", "", "") };
    let mut text = format!("{red}error:{plain} {}\n", error.message.trim_end());
    if let Some(detail) = &error.detail {
        text.push('\n');
        for line in detail.trim_end().lines() {
            text.push_str(line);
            text.push('\n');
        }
        text.push('\n');
    }
    if let Some(advice) = &error.advice {
        text.push_str(&format!("{green}help:{plain} {}\n", advice.trim_end()));
    }
    text
}

fn write(text: &str) {
    // Nobody is left to be told when this fails.
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_a_line_a_block_and_advice() {
        let error = Failure::new(Code::SourceRejected, "clang refused p.c")
            .detail("p.c:3:9: error: use of undeclared identifier 'nxt'\n")
            .advise("correct the source");
        assert_eq!(
            text(&error, false),
            "error: clang refused p.c\n\n\
             p.c:3:9: error: use of undeclared identifier 'nxt'\n\n\
             help: correct the source\n"
        );
        assert_eq!(text(&Failure::new(Code::Internal, "no"), false), "error: no\n");
    }
}
