//! For the build scripts of hook crates: the SDK's headers on disk, and the
//! table of policies that ship with a hook, compiled as the engine compiles a
//! user's.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use crate::{Compiler, HEADERS};

/// Writes the SDK's headers below `out` and gives the folder to include from.
///
/// # Errors
/// The system's, when they cannot be written.
pub fn headers(out: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let include = out.join("include");
    for (name, text) in HEADERS {
        let path = include.join(name);
        fs::create_dir_all(path.parent().ok_or("a header outside a folder")?)?;
        fs::write(path, text)?;
    }
    Ok(include)
}

/// Compiles the policies in `dir` and writes `policies.rs` below `out`: a slice
/// of `Builtin`, in order of their names.
///
/// # Errors
/// Naming the policy that does not compile or lacks its head comment.
pub fn policies(compiler: &Compiler, dir: &Path, out: &Path) -> Result<(), Box<dyn Error>> {
    let mut sources = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|ext| ext == "c") {
            sources.push(path);
        }
    }
    sources.sort();
    let mut table = String::from("&[\n");
    for path in sources {
        let stem = path.file_stem().and_then(|s| s.to_str()).ok_or("a policy without a name")?;
        let source = fs::read_to_string(&path)?;
        let summary = summary(&source)
            .ok_or_else(|| format!("{}: no head comment that ends a sentence", path.display()))?;
        let compiled = compiler
            .compile(&format!("{stem}.c"), &source)
            .map_err(|e| format!("{}: {e}", path.display()))?;
        let object = out.join(format!("policy-{stem}.o"));
        fs::write(&object, compiled.object)?;
        let path = fs::canonicalize(&path)?;
        table.push_str(&format!(
            "Builtin {{ name: {stem:?}, summary: {summary:?}, source: include_str!({path:?}), \
             object: include_bytes!({object:?}) }},\n"
        ));
    }
    table.push_str("]\n");
    fs::write(out.join("policies.rs"), table)?;
    Ok(())
}

/// The first sentence of the head comment, which follows the licence line.
fn summary(source: &str) -> Option<String> {
    let comment = source.split("/*\n").nth(1)?.split("*/").next()?;
    let text: Vec<&str> =
        comment.lines().map(|line| line.trim_start_matches(" *").trim()).collect();
    let text = text.join(" ");
    let end = text.find(". ").map_or(text.trim_end().len(), |dot| dot + 1);
    let sentence = text.get(..end)?.trim();
    sentence.ends_with('.').then(|| sentence.to_owned())
}

#[cfg(test)]
mod tests {
    use super::summary;

    #[test]
    fn the_first_sentence_of_the_head_comment_is_the_summary() {
        let head = "// licence\n/*\n * Does this,\n * and that. More.\n */\n";
        assert_eq!(summary(head).as_deref(), Some("Does this, and that."));
        assert_eq!(summary("/*\n * No end\n */\n"), None);
        assert_eq!(summary("int x;\n"), None);
    }
}
