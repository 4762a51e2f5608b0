//! Keeps two promises about the sources: folders only use folders below them, and what is trained is built from
//! operations with true gradients.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Lowest first. Folders of one row do not see each other.
const ORDER: &[&[&str]] = &[
    &["base"],
    &["io"],
    &["nn"],
    &["labels"],
    &["models", "data"],
    &["train", "eval", "report"],
    &["diffusion", "prompting", "uda"],
    &["systems"],
    &["cli"],
];

/// Stock operations whose gradient is missing, wrong or an error, or whose draws cannot be seeded.
const FORBIDDEN: &[(&str, &str)] = &[
    ("candle_nn", "the layers of `nn`"),
    ("softmax_last_dim", "`nn::softmax`"),
    (".max_pool2d", "`nn::max_pool2d`"),
    (".avg_pool2d", "an operation of `nn`"),
    ("Tensor::max_pool2d", "`nn::max_pool2d`"),
    ("Tensor::avg_pool2d", "an operation of `nn`"),
    ("upsample_nearest", "`nn::resize_nearest`"),
    ("upsample_bilinear", "`nn::resize_bilinear`"),
    (".interpolate", "`nn::resize_nearest`"),
    (".conv1d(", "an operation of `nn`"),
    (".conv2d(", "`nn::Conv2d`"),
    (".conv_transpose", "an operation of `nn`"),
    (".unfold(", "`narrow` and `stack`"),
    (".scatter(", "`gather`, `where_cond` or `index_add`"),
    (".scatter_add(", "`index_add`"),
    ("Tensor::rand", "`base::Rng`"),
    (".rand_like(", "`base::Rng`"),
    (".randn_like(", "`base::Rng`"),
    ("rand::rng()", "`base::Rng`"),
    ("thread_rng", "`base::Rng`"),
];

/// Folder of `src` and code (without comment lines) of each source file, `lib.rs` and programs left out.
fn sources() -> Vec<(String, PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    for entry in walkdir::WalkDir::new(&root).sort_by_file_name() {
        let path = entry.unwrap().into_path();
        let inside = path.strip_prefix(&root).unwrap();
        let folder = inside.iter().next().map(|part| part.to_string_lossy().into_owned()).unwrap_or_default();
        let is_code = path.extension().is_some_and(|extension| extension == "rs");
        if is_code && inside.components().count() > 1 && folder != "bin" {
            found.push((folder, inside.to_path_buf(), code(&std::fs::read_to_string(&path).unwrap())));
        }
    }
    assert!(found.len() > 10, "no sources below {}", root.display());
    found
}

fn code(text: &str) -> String {
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// First two names of each path that starts with `crate::`, e.g. `nn` and `Builder`; groups in braces are opened.
fn references(code: &str) -> BTreeSet<(String, String)> {
    let mut found = BTreeSet::new();
    let name = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let names = |path: &str| {
        let path = path.trim_start();
        let first = name(path);
        let second = path[first.len()..].strip_prefix("::").map(name).unwrap_or_default();
        (first, second)
    };
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            None => {
                found.insert(names(rest));
            }
            Some(group) => {
                let mut depth = 0usize;
                let mut start = true;
                for (i, c) in group.char_indices() {
                    if start && !c.is_whitespace() && c != '}' {
                        found.insert(names(&group[i..]));
                        start = false;
                    }
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => start = true,
                        _ => {}
                    }
                }
            }
        }
    }
    found
}

fn rank(folder: &str) -> Option<usize> {
    ORDER.iter().position(|row| row.contains(&folder))
}

#[test]
fn folders_only_use_folders_below_them() {
    let mut wrong = Vec::new();
    for (folder, path, code) in sources() {
        let Some(own) = rank(&folder) else {
            wrong.push(format!("{}: folder `{folder}` has no place in the order", path.display()));
            continue;
        };
        for (target, second) in references(&code) {
            let Some(theirs) = rank(&target) else {
                wrong.push(format!("{}: `crate::{target}` has no place in the order", path.display()));
                continue;
            };
            if target != folder && theirs >= own {
                wrong.push(format!("{}: `{folder}` must not use `{target}`", path.display()));
            }
            let system = path.iter().nth(1).map(|part| part.to_string_lossy().trim_end_matches(".rs").to_string());
            if folder == "systems" && target == "systems" && system.as_deref() != Some(&second) && second != "shared" {
                wrong.push(format!("{}: a system must not use the system `{second}`", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn operations_without_true_gradients_stay_out() {
    let mut wrong = Vec::new();
    for (folder, path, code) in sources() {
        if folder == "nn" {
            continue; // the place that wraps or replaces them
        }
        for (word, instead) in FORBIDDEN.iter().filter(|(word, _)| code.contains(word)) {
            wrong.push(format!("{}: `{word}`; use {instead}", path.display()));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn references_are_found_in_groups_too() {
    let code = code(
        "use crate::nn::Builder;\n// crate::cli\nuse crate::{\n  io::{atomic, hash},\n  base::Rng, };\nfn f() { crate::uda::x() }",
    );
    let found: Vec<(String, String)> = references(&code).into_iter().collect();
    let expected = [("base", "Rng"), ("io", ""), ("nn", "Builder"), ("uda", "x")];
    assert_eq!(found, expected.map(|(a, b)| (a.to_string(), b.to_string())));
}
