//! What the documentation promises exists, and what exists is documented.

use std::path::PathBuf;
use std::process::Command;

use syrup_protocol::Call;
use syrup_tests::{Ctl, Need, own_network, require};

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(repository().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

#[test]
fn every_hook_has_its_page_and_every_policy_stands_on_one() {
    if !require(&[Need::Root]) {
        return;
    }
    let ctl = Ctl::new();
    let mut pages = String::new();
    for hook in ctl.json(&["hooks"])["hooks"].as_array().unwrap() {
        let name = hook["name"].as_str().unwrap();
        pages += &read(&format!("docs/{name}.md"));
        assert!(read("README.md").contains(&format!("docs/{name}.md")), "README links {name}");
    }
    for policy in ctl.json(&["policies"])["policies"].as_array().unwrap() {
        let name = policy["name"].as_str().unwrap();
        assert!(pages.contains(&format!("`{name}`")), "policy {name} is on no hook's page");
    }
}

/// Files that adding a hook touches, at most.
const FILES_OF_A_HOOK: usize = 7;

#[test]
fn a_hook_takes_the_files_that_its_page_names_and_no_others() {
    let page = read("docs/add-a-hook.md");
    let named = numbered_files(&page);
    assert!((1..=FILES_OF_A_HOOK).contains(&named.len()), "{named:?}");
    // What serves all hooks knows none of them: each is in its crate and in the list.
    let types = ["SocketSelect", "ScxSyrup", "SOCKET_SELECT", "syrup_scx::", "syrup_net_hooks::"];
    let mut seen = 0;
    for folder in ["hook", "protocol", "engine", "syrup", "syrupctl", "syrupd"] {
        for path in sources(&repository().join(folder).join("src")) {
            let text = std::fs::read_to_string(&path).unwrap();
            let path = path.strip_prefix(repository()).unwrap().to_str().unwrap().to_owned();
            seen += 1;
            let knows = types.iter().find(|name| text.contains(**name));
            assert!(knows.is_none() || named.contains(&path.as_str()), "{path}: {knows:?}");
        }
    }
    assert!(seen > 50, "only {seen} files were looked at");
}

/// The files that the items of a page's numbered list begin with.
fn numbered_files(text: &str) -> Vec<&str> {
    let files: Vec<&str> = text
        .lines()
        .filter_map(|line| line.split_once(". `").filter(|(n, _)| n.parse::<u32>().is_ok()))
        .filter_map(|(_, rest)| rest.split('`').next())
        .collect();
    for file in &files {
        assert!(repository().join(file).is_file(), "{file} is not there");
    }
    files
}

/// Files that asking the arbiter something new touches, at most; and with a verb for it.
const FILES_OF_A_CALL: usize = 3;
const FILES_OF_A_VERB: usize = 3;

#[test]
fn a_call_takes_the_files_that_the_page_names_and_no_others() {
    let page = read("docs/ARCHITECTURE.md");
    let named = numbered_files(&page);
    assert_eq!(named.len(), FILES_OF_A_CALL + FILES_OF_A_VERB, "{named:?}");
    let of_calls = &named[..FILES_OF_A_CALL];
    let mut seen = 0;
    for folder in
        ["hook", "net-hooks", "scx-syrup", "protocol", "engine", "syrup", "syrupctl", "syrupd"]
    {
        for path in sources(&repository().join(folder).join("src")) {
            let text = std::fs::read_to_string(&path).unwrap();
            // What tests say of calls is theirs.
            let text = text.split("#[cfg(test)]").next().unwrap();
            let path = path.strip_prefix(repository()).unwrap().to_str().unwrap();
            let names = |method: &&&str| {
                let forms = [
                    format!("Call::{method}("),
                    format!("Reply::{method}("),
                    format!("\"{method}\""),
                ];
                forms.iter().any(|form| text.contains(form))
            };
            let known = Call::METHODS.iter().find(names);
            assert!(known.is_none() || of_calls.contains(&path), "{path}: {known:?}");
            seen += usize::from(known.is_some());
        }
    }
    assert!(seen > 0, "no file answers a call");
}

/// The Rust files below a folder.
fn sources(folder: &std::path::Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

#[test]
fn links_between_pages_lead_somewhere() {
    for page in ["README.md", "docs/ARCHITECTURE.md", "docs/add-a-policy.md", "docs/add-a-hook.md"]
    {
        let text = read(page);
        let folder = repository().join(page).parent().unwrap().to_owned();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if !link.starts_with("http") && !link.starts_with('#') {
                assert!(folder.join(link).exists(), "{page} links {link}");
            }
        }
    }
}

#[test]
fn the_policy_of_the_documentation_compiles_and_checks() {
    if !require(&[Need::Root]) {
        return;
    }
    let ctl = Ctl::new();
    for page in ["README.md", "docs/add-a-policy.md"] {
        let text = read(page);
        for (number, code) in text.split("```c\n").skip(1).enumerate() {
            let source = code.split("```").next().unwrap();
            let file = ctl.file(&format!("page{number}.c"), source);
            ctl.run(&["check", &file, "--hook", "socket-select"]).ok();
        }
    }
}

#[test]
fn the_compiler_call_of_the_documentation_makes_an_object_that_loads() {
    if !require(&[Need::Root]) {
        return;
    }
    own_network();
    let ctl = Ctl::new();
    let page = read("docs/add-a-policy.md");
    let block = page.split("```\n").find(|block| block.starts_with("clang ")).unwrap();
    let call = block.split("syrupctl").next().unwrap();
    let source = page.split("```c\n").nth(1).unwrap().split("```").next().unwrap();
    // What the page calls mine.c, the SDK's folder and clang.
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("mine.c"), source).unwrap();
    std::os::unix::fs::symlink(repository().join("include"), dir.path().join("include")).unwrap();
    let clang = syrup_sdk::Compiler::find().unwrap();
    std::os::unix::fs::symlink(clang.path(), dir.path().join("clang")).unwrap();
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
    let compile = |call: &str| {
        let mut sh = Command::new("sh");
        let status =
            sh.args(["-ec", call]).current_dir(dir.path()).env("PATH", &path).status().unwrap();
        assert!(status.success(), "{call}");
        dir.path().join("mine.o").to_str().unwrap().to_owned()
    };
    let object = compile(call);
    ctl.run(&["check", &object, "--hook", "socket-select"]).ok();
    ctl.run(&["load", "socket-select", "--policy", &object]).ok();
    ctl.run(&["unload", "--all"]).ok();
    // What the page says of each option happens without it.
    for (option, says) in [("-fvisibility=hidden", "-fvisibility=hidden"), ("-g", "-g")] {
        let object = compile(&call.replace(&format!(" {option} "), " "));
        ctl.run(&["check", &object, "--hook", "socket-select"]).fails(3, says);
    }
}
