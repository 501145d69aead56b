//! Data on standard output: tables for people, JSON for programs.

use std::io::{self, IsTerminal as _, Write as _};

use clap::ValueEnum;
use serde::Serialize;
use syrup_protocol::{Code, Failure, Result};
use tabled::builder::Builder;
use tabled::settings::{Padding, Style};

/// How data is printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Table,
    /// For programs: one document, "schema": 1
    Json,
}

/// Version of every JSON document.
const SCHEMA: u32 = 1;

/// Standard output in the format that was asked for.
#[derive(Debug)]
pub struct Output {
    format: Format,
    terminal: bool,
}

/// Colours that carry meaning; shown on terminals only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    Green,
    Yellow,
    Red,
}

#[derive(Serialize)]
struct Document<'a, T> {
    schema: u32,
    #[serde(flatten)]
    body: &'a T,
}

impl Output {
    pub fn new(format: Format) -> Self {
        Self { format, terminal: io::stdout().is_terminal() }
    }

    /// Prints `body`'s fields as one JSON document, or the text for people.
    pub fn print<T: Serialize>(&self, body: &T, text: impl FnOnce() -> String) -> Result<()> {
        match self.format {
            Format::Table => write(&text()),
            Format::Json => write(&document(body, self.terminal)?),
        }
    }

    /// Prints what is neither: a script.
    pub fn raw(&self, bytes: &[u8]) -> Result<()> {
        write(&String::from_utf8_lossy(bytes))
    }

    /// Whether people read it.
    pub fn is_for_people(&self) -> bool {
        self.format == Format::Table
    }

    /// `text` in a colour, on terminals whose user did not object.
    pub fn paint(&self, colour: Colour, text: &str) -> String {
        let wanted = self.terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        let code = match colour {
            Colour::Green => 32,
            Colour::Yellow => 33,
            Colour::Red => 31,
        };
        if wanted { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

fn document<T: Serialize>(body: &T, pretty: bool) -> Result<String> {
    let document = Document { schema: SCHEMA, body };
    let text = if pretty {
        serde_json::to_string_pretty(&document)
    } else {
        serde_json::to_string(&document)
    };
    text.map(|text| text + "\n")
        .map_err(|e| Failure::new(Code::Internal, format!("cannot write JSON: {e}")))
}

fn write(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        // The reader (`| head`) has seen enough.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(e) => {
            Err(Failure::new(Code::Internal, format!("cannot write to standard output: {e}")))
        }
        Ok(()) => Ok(()),
    }
}

/// Columns under headings, two blanks apart, without trailing blanks. No rows: no text.
pub fn table<const N: usize>(headings: [&str; N], rows: Vec<[String; N]>) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let mut builder = Builder::new();
    builder.push_record(headings);
    for row in rows {
        builder.push_record(row);
    }
    trimmed(builder)
}

/// Names and values, indented.
pub fn facts(rows: &[(&str, String)]) -> String {
    let mut builder = Builder::new();
    for (name, value) in rows {
        builder.push_record([format!("  {name}"), value.clone()]);
    }
    trimmed(builder)
}

fn trimmed(builder: Builder) -> String {
    let table = builder.build().with(Style::empty()).with(Padding::new(0, 2, 0, 0)).to_string();
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Things {
        things: Vec<u32>,
    }

    #[test]
    fn a_document_starts_with_its_schema_and_an_empty_list_is_a_list() {
        let text = document(&Things { things: vec![] }, false).unwrap();
        assert_eq!(text, "{\"schema\":1,\"things\":[]}\n");
    }

    #[test]
    fn columns_are_aligned_and_not_padded_at_the_end() {
        let rows = vec![["a".to_owned(), "b".to_owned()], ["long".to_owned(), String::new()]];
        assert_eq!(table(["X", "Y"], rows), "X     Y\na     b\nlong\n");
        assert_eq!(table(["X"], vec![]), "");
    }
}
