// SPDX-License-Identifier: MIT OR Apache-2.0
//! The check of layers: which module of a crate may use which other, and which crate of the
//! workspace which other, by the table in `xtask/layers.toml`.
//!
//! An edge is a path `crate::MODULE` in a file of another top-level module. Tests may use anything.
//! The table itself must be free of circles, so the code is too.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::lint::sources;

/// The table, by crate folder.
type Table = BTreeMap<String, Crate>;

/// What a crate may use.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Crate {
    /// Other crates of the workspace.
    depends: BTreeSet<String>,
    /// For each top-level module, the other modules that it may use. Without it, no module of the
    /// crate is checked.
    modules: Option<BTreeMap<String, BTreeSet<String>>>,
    /// Edges `FROM TO` that should not be there and still are.
    #[serde(default)]
    except: BTreeSet<String>,
}

/// Edges between top-level modules, each with the file that it was found in last.
type Edges = BTreeMap<(String, String), String>;

/// Fails if a module or a crate uses what the table does not allow; names every such edge.
pub(crate) fn check(root: &Path) -> Result<()> {
    let path = root.join("xtask/layers.toml");
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let table: Table = toml::from_str(&text).with_context(|| path.display().to_string())?;
    let mut faults = Vec::new();
    for (folder, rules) in &table {
        let manifest = fs::read_to_string(root.join(folder).join("Cargo.toml"))
            .with_context(|| format!("no crate {folder}"))?;
        let used = dependencies(&manifest)?;
        faults.extend(
            used.difference(&rules.depends)
                .map(|other| format!("{folder} depends on {other}")),
        );
        let Some(modules) = &rules.modules else {
            continue;
        };
        let source = root.join(folder).join("src");
        let mut files = Vec::new();
        for file in sources(&source)? {
            let name = file.strip_prefix(&source)?.display().to_string();
            files.push((name, fs::read_to_string(&file)?));
        }
        let found = judge(&files, modules, &rules.except);
        faults.extend(found.into_iter().map(|fault| format!("{folder}: {fault}")));
    }
    if !faults.is_empty() {
        bail!("layers (xtask/layers.toml): {}", faults.join("; "));
    }
    Ok(())
}

/// Returns the crates of this workspace that a manifest depends on, except for tests.
fn dependencies(manifest: &str) -> Result<BTreeSet<String>> {
    #[derive(Deserialize)]
    struct Manifest {
        #[serde(default)]
        dependencies: toml::Table,
    }
    let Manifest { dependencies } = toml::from_str(manifest)?;
    let own = dependencies.into_iter().map(|(name, _)| name);
    Ok(own.filter(|name| name.starts_with("forwarder")).collect())
}

/// Compares the files of a crate, by their paths below `src`, with what its modules may use.
fn judge(
    files: &[(String, String)],
    allowed: &BTreeMap<String, BTreeSet<String>>,
    except: &BTreeSet<String>,
) -> Vec<String> {
    let modules: BTreeSet<String> = files.iter().filter_map(|(name, _)| module(name)).collect();
    let mut faults = Vec::new();
    for name in modules.iter().filter(|name| !allowed.contains_key(*name)) {
        faults.push(format!("the module {name} has no line"));
    }
    for (name, used) in allowed {
        for absent in used.iter().chain([name]).filter(|m| !modules.contains(*m)) {
            faults.push(format!("there is no module {absent}"));
        }
    }
    let edges = edges(files, &modules);
    for ((from, to), file) in &edges {
        let is_allowed = allowed.get(from).is_some_and(|used| used.contains(to));
        if !is_allowed && !except.contains(&format!("{from} {to}")) {
            faults.push(format!("{from} uses {to} ({file})"));
        }
    }
    for edge in except {
        let (from, to) = edge.split_once(' ').unwrap_or((edge, ""));
        if !edges.contains_key(&(from.to_owned(), to.to_owned())) {
            faults.push(format!("the exception `{edge}` is no longer needed"));
        }
    }
    faults.extend(circle(allowed).map(|circle| format!("a circle: {}", circle.join(" → "))));
    faults
}

/// Returns the top-level module that a file belongs to; none for the root and for tests.
fn module(file: &str) -> Option<String> {
    let is_test = file.ends_with("tests.rs") || file.contains("tests/");
    let first = file.split('/').next()?;
    let name = first.strip_suffix(".rs").unwrap_or(first);
    (!is_test && !["lib", "main"].contains(&name)).then(|| name.to_owned())
}

fn edges(files: &[(String, String)], modules: &BTreeSet<String>) -> Edges {
    let mut edges = Edges::new();
    for (file, text) in files {
        let Some(from) = module(file) else { continue };
        for to in used(text) {
            if to != from && modules.contains(&to) {
                edges.insert((from.clone(), to), file.clone());
            }
        }
    }
    edges
}

/// Returns the names after `crate::` in a source text, but for comments and the tests at its end.
fn used(text: &str) -> Vec<String> {
    let code = text
        .split("#[cfg(test)]\nmod tests {")
        .next()
        .unwrap_or_default();
    // A colon before the slashes belongs to an address in a string.
    let code: Vec<_> = code
        .lines()
        .map(|line| {
            match line
                .match_indices("//")
                .find(|(at, _)| !line[..*at].ends_with(':'))
            {
                Some((at, _)) => &line[..at],
                None => line,
            }
        })
        .collect();
    let code = code.join("\n");
    let mut names = Vec::new();
    for (at, path) in code.match_indices("crate::") {
        // Not the end of a longer name.
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = &code[at + path.len()..];
        match rest.strip_prefix('{') {
            Some(list) => names.extend(listed(list)),
            None => names.push(name(rest)),
        }
    }
    names
}

/// Returns the first names of the paths in a list, up to its closing brace.
fn listed(list: &str) -> Vec<String> {
    let (mut names, mut depth, mut starts) = (Vec::new(), 0, true);
    for (at, letter) in list.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => starts = true,
            letter if starts && !letter.is_whitespace() => {
                names.push(name(&list[at..]));
                starts = false;
            }
            _ => {}
        }
    }
    names
}

fn name(text: &str) -> String {
    text.chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect()
}

/// Returns a circle among the allowed edges, if there is one: the first module again at the end.
fn circle(allowed: &BTreeMap<String, BTreeSet<String>>) -> Option<Vec<String>> {
    fn walk<'a>(
        from: &'a str,
        allowed: &'a BTreeMap<String, BTreeSet<String>>,
        path: &mut Vec<&'a str>,
        done: &mut BTreeSet<&'a str>,
    ) -> Option<Vec<String>> {
        if let Some(at) = path.iter().position(|name| *name == from) {
            let circle = path[at..].iter().chain([&from]);
            return Some(circle.map(|name| (*name).to_owned()).collect());
        }
        if !done.insert(from) {
            return None;
        }
        path.push(from);
        let used = allowed.get(from).into_iter().flatten();
        let found = used
            .map(String::as_str)
            .find_map(|to| walk(to, allowed, path, done));
        path.pop();
        found
    }
    let mut done = BTreeSet::new();
    allowed
        .keys()
        .find_map(|from| walk(from, allowed, &mut Vec::new(), &mut done))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(lines: &[(&str, &[&str])]) -> BTreeMap<String, BTreeSet<String>> {
        let set = |used: &[&str]| used.iter().map(|name| (*name).to_owned()).collect();
        lines
            .iter()
            .map(|(name, used)| ((*name).to_owned(), set(used)))
            .collect()
    }

    fn files(all: &[(&str, &str)]) -> Vec<(String, String)> {
        all.iter()
            .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
            .collect()
    }

    #[test]
    fn this_tree_keeps_its_layers() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        // The message is shown as it is, without a backtrace.
        if let Err(error) = check(&root) {
            panic!("{error:#}");
        }
    }

    #[test]
    fn edge_outside_the_table_is_named() {
        let files = files(&[
            ("lib.rs", "use crate::upper;"),
            ("lower.rs", "use crate::upper::X;"),
            ("upper.rs", ""),
            ("upper/part.rs", "fn f() { crate::lower::g(); }"),
        ]);
        let table = allowed(&[("lower", &[]), ("upper", &["lower"])]);
        let faults = judge(&files, &table, &BTreeSet::new());
        assert_eq!(faults, ["lower uses upper (lower.rs)"]);
        let except = BTreeSet::from(["lower upper".to_owned()]);
        assert_eq!(judge(&files, &table, &except), [""; 0]);
    }

    #[test]
    fn circle_in_the_table_is_shown() {
        let names = ["a.rs", "b.rs", "c.rs"].map(|name| (name, ""));
        let table = allowed(&[("a", &["b"]), ("b", &["c"]), ("c", &["b"])]);
        let faults = judge(&files(&names), &table, &BTreeSet::new());
        assert_eq!(faults, ["a circle: b → c → b"]);
        let table = allowed(&[("a", &["b", "c"]), ("b", &["c"]), ("c", &[])]);
        assert_eq!(judge(&files(&names), &table, &BTreeSet::new()), [""; 0]);
    }

    #[test]
    fn table_follows_the_tree() {
        let files = files(&[("a.rs", ""), ("new/mod.rs", "")]);
        let table = allowed(&[("a", &["gone"])]);
        let except = BTreeSet::from(["a new".to_owned()]);
        assert_eq!(
            judge(&files, &table, &except),
            [
                "the module new has no line",
                "there is no module gone",
                "the exception `a new` is no longer needed"
            ]
        );
    }

    #[test]
    fn every_form_of_path_is_an_edge() {
        let text = "\
            use crate::{a, b::{self, c}, d as e};\n\
            //! [`crate::comment`]\n\
            let x = \"unix://\"; crate::f!(); // crate::g\n\
            pub(crate) use mycrate::h; pub(in crate::i) fn j() {}\n\
            #[cfg(test)]\nmod tests;\n\
            use crate::k;\n\
            #[cfg(test)]\nmod tests { use crate::l; }";
        assert_eq!(used(text), ["a", "b", "d", "f", "i", "k"]);
    }

    #[test]
    fn dependencies_are_those_of_the_workspace() {
        let manifest = "[dependencies]\nserde = \"1\"\nforwarder-a.workspace = true\n\
                        [dev-dependencies]\nforwarder-b.workspace = true\n";
        let own = dependencies(manifest).unwrap();
        assert_eq!(own, BTreeSet::from(["forwarder-a".to_owned()]));
    }
}
