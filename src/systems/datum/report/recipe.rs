//! `recipe.toml` of a run folder: values, and where each came from.

use crate::base::{Error, Result};
use crate::io;
use std::collections::BTreeMap;
use std::path::Path;
use toml::{Table, Value};

/// One value.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    /// As text, without the quotes of texts.
    pub value: String,
    /// `default`, a recipe, a variable or a flag.
    pub origin: String,
}

/// All values of a run by dotted key, in the file's order of groups.
#[derive(Debug, Clone, Default)]
pub struct Recipe {
    values: Table,
    /// Dotted key and value.
    pub settings: Vec<(String, Setting)>,
}

impl Recipe {
    /// # Errors
    /// No such file; text that is no TOML.
    pub fn read(path: &Path) -> Result<Self> {
        let text = io::read_text(path)?;
        let values = text.parse::<Table>().map_err(|e| {
            let found = e.to_string().trim().to_string();
            Error::data(path, "a recipe that datum wrote", found, "restore the file, or report on another run")
        })?;
        let origins = origins(&text);
        let mut settings = Vec::new();
        list(&values, "", &origins, &mut settings);
        Ok(Self { values, settings })
    }

    /// The value of a dotted key.
    fn get(&self, key: &str) -> Option<&Value> {
        let (group, name) = key.rsplit_once('.').unwrap_or(("", key));
        let mut groups = group.split('.').filter(|part| !part.is_empty());
        groups.try_fold(&self.values, |table, part| table.get(part)?.as_table())?.get(name)
    }

    /// True if there is such a key.
    pub fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// A text; empty where there is none.
    pub fn text(&self, key: &str) -> &str {
        self.get(key).and_then(Value::as_str).unwrap_or_default()
    }

    /// A count.
    pub fn count(&self, key: &str) -> Option<u64> {
        self.get(key)?.as_integer()?.try_into().ok()
    }

    /// The texts of a list.
    pub fn list(&self, key: &str) -> Vec<&str> {
        self.get(key).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect()
    }

    /// The setting of a dotted key.
    pub fn setting(&self, key: &str) -> Option<&Setting> {
        self.settings.iter().find(|(name, _)| name == key).map(|(_, setting)| setting)
    }
}

/// The comment behind each value, by dotted key.
fn origins(text: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut group = String::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            group = format!("{name}.");
        } else if let (Some((name, _)), Some((_, origin))) = (line.split_once(" = "), line.rsplit_once("  # ")) {
            found.insert(format!("{group}{name}"), origin.replace('`', ""));
        }
    }
    found
}

/// Values first, then groups.
fn list(table: &Table, prefix: &str, origins: &BTreeMap<String, String>, settings: &mut Vec<(String, Setting)>) {
    for (name, value) in table.iter().filter(|(_, value)| !value.is_table()) {
        let key = format!("{prefix}{name}");
        let origin = origins.get(&key).cloned().unwrap_or_default();
        settings.push((key, Setting { value: show(value), origin }));
    }
    for (name, value) in table {
        if let Value::Table(inner) = value {
            list(inner, &format!("{prefix}{name}."), origins, settings);
        }
    }
}

fn show(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        // Settings of 32 bits are written with all the digits of 64.
        Value::Float(value) if f64::from(*value as f32) == *value => (*value as f32).to_string(),
        Value::Array(items) => items.iter().map(show).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_with_their_origin() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("recipe.toml");
        let text = "images = [\"a.png\", \"b  # c.png\"]  # `--images`\nsteps = 300  # default\n\n\
                    [unet]\nema = 0.10000000149011612  # recipe x.toml\n";
        std::fs::write(&path, text).unwrap();
        let recipe = Recipe::read(&path).unwrap();
        let shown: Vec<_> = recipe.settings.iter().map(|(key, s)| format!("{key}: {} ({})", s.value, s.origin)).collect();
        assert_eq!(shown, ["images: a.png, b  # c.png (--images)", "steps: 300 (default)", "unet.ema: 0.1 (recipe x.toml)"]);
        assert_eq!(recipe.list("images"), ["a.png", "b  # c.png"]);
        assert_eq!((recipe.count("steps"), recipe.has("unet.ema"), recipe.has("vae.ema")), (Some(300), true, false));
        std::fs::write(&path, "steps = ").unwrap();
        assert_eq!(Recipe::read(&path).unwrap_err().exit_code(), 3);
    }
}
