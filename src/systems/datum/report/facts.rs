//! What was run, with which values, on which machine, how long it took.

use super::recipe::Setting;
use super::run::{Run, Verb};
use super::scores;
use crate::base::clock;
use crate::report::html::table::{Cell, Row, Table, table};
use crate::report::html::{Markup, html};
use crate::report::terminal;
use serde_json::Value;
use std::time::Duration;

/// `2026-11-21 20:30 UTC`
pub fn moment(seconds: u64) -> String {
    let minutes = seconds / 60;
    format!("{} {:02}:{:02} UTC", clock::date(seconds / 86_400), minutes / 60 % 24, minutes % 60)
}

fn time(seconds: f64) -> String {
    terminal::duration(Duration::try_from_secs_f64(seconds).unwrap_or_default())
}

/// How far the run is, in a few words.
pub fn state(run: &Run) -> String {
    if run.is_finished() {
        return "finished".into();
    }
    let made = format!("{} of {} images", run.items.len(), run.wanted_items());
    let of_stage = |(stage, done, all): (String, u64, Option<u64>)| {
        let stage = if stage.is_empty() { stage } else { format!(" of {stage}") };
        all.map_or(format!("step {done}{stage}"), |all| format!("step {done} of {all}{stage}"))
    };
    let seeds = run.seeds.iter().filter(|(_, run)| run.is_finished()).count();
    let steps = run.steps().into_iter().map(of_stage).collect::<Vec<_>>().join(", ");
    let reached = match run.verb {
        Some(Verb::Generate | Verb::RenderStreet) => made,
        _ if !run.seeds.is_empty() => format!("{seeds} of {} seeds", run.asked_seeds.max(run.seeds.len())),
        Some(verb) if verb.is_training() && steps.is_empty() => "before the first step".into(),
        _ => steps,
    };
    let state = if run.verb.is_some() { "not finished" } else { "unknown" };
    if reached.is_empty() { state.into() } else { format!("{state} ({reached})") }
}

/// The page's first sentence about one run.
pub fn lead(run: &Run) -> String {
    if run.verb.is_none() {
        return "Which command made this run is unknown, and whether it is finished. The page shows what is there.".into();
    }
    if !run.is_finished() {
        return format!("This run is {}. The page shows what is there; `datum report` brings it up to date.", state(run));
    }
    let seconds: f64 = run.stages.iter().map(|stage| stage.seconds).sum();
    let end = run.stages.iter().filter_map(|stage| stage.end).max().map_or(String::new(), |end| format!(" on {}", moment(end)));
    let took = if seconds > 0.0 { format!(" after {}", time(seconds)) } else { String::new() };
    let mious = scores::subjects(std::slice::from_ref(run))
        .into_iter()
        .filter_map(|subject| Some(format!(" mIoU {} % on {}.", scores::miou_text(run, &subject)?, subject.title())));
    format!("Finished{end}{took}.{}", mious.collect::<String>())
}

/// Facts of one run as (name, value), the most telling first.
fn of_run(run: &Run, runs: &[Run]) -> Vec<(String, String)> {
    let mut facts: Vec<(String, String)> = Vec::new();
    let mut add = |name: &str, value: String| {
        if !value.is_empty() {
            facts.push((name.into(), value));
        }
    };
    add("Command", run.verb.map_or("unknown".into(), |verb| verb.command()));
    add("State", state(run));
    for subject in scores::subjects(runs) {
        let miou = scores::miou_text(run, &subject).unwrap_or_default();
        add(&format!("mIoU on {}", subject.title()), miou);
    }
    let known = [
        ("Strategy", "strategy"),
        ("Encoder", "encoder"),
        ("Method", "method"),
        ("Base", "base"),
        ("Model", "model"),
        ("Starts from", "init"),
        ("Source", "source"),
        ("Target", "target"),
        ("Photos", "images"),
        ("Prompts", "prompts"),
        ("Look", "look"),
        ("Seed", "seed"),
    ];
    for (name, key) in known.into_iter().filter(|(_, key)| *key != "seed" || run.seeds.is_empty()) {
        add(name, run.recipe.setting(key).map_or(String::new(), |setting| setting.value.clone()));
    }
    add("Seeds", run.seeds.iter().map(|(seed, _)| seed.to_string()).collect::<Vec<_>>().join(", "));
    for (stage, done, all) in run.steps() {
        let name = if stage.is_empty() { "Steps".into() } else { format!("Steps of {stage}") };
        add(&name, all.filter(|all| *all != done).map_or(done.to_string(), |all| format!("{done} of {all}")));
    }
    if matches!(run.verb, Some(Verb::Generate | Verb::RenderStreet)) {
        add("Images", run.items.len().to_string());
    }
    let seconds: f64 = run.stages.iter().map(|stage| stage.seconds).sum();
    add("Time", if run.stages.is_empty() { String::new() } else { time(seconds) });
    add("Peak memory", run.stages.iter().filter_map(|stage| stage.memory).max().map_or(String::new(), terminal::memory));
    add("Folder", run.path.display().to_string());
    facts
}

/// Names and values of all runs: a list for one, a table for several.
pub fn summary(runs: &[Run]) -> Markup {
    let all: Vec<Vec<(String, String)>> = runs.iter().map(|run| of_run(run, runs)).collect();
    if let [facts] = all.as_slice() {
        return html! { dl.facts { @for (name, value) in facts { div { dt { (name) } dd { (value) } } } } (again(&runs[0])) };
    }
    let mut names: Vec<&String> = Vec::new();
    for (name, _) in all.iter().flatten() {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let value = |facts: &Vec<(String, String)>, name: &String| {
        Cell::text(facts.iter().find(|(other, _)| other == name).map_or("–", |(_, value)| value.as_str()))
    };
    let row = |name: &&String| {
        let values = all.iter().map(|facts| value(facts, name));
        Row::new(std::iter::once(Cell::text(name)).chain(values).collect())
    };
    let rows = names.iter().map(row).collect();
    table(&Table { caption: String::new(), head: heads(runs, ""), rows })
}

/// How to do the same again.
fn again(run: &Run) -> Markup {
    let Some(verb) = run.verb else { return html! {} };
    let seeds: Vec<String> = run.seeds.iter().map(|(seed, _)| seed.to_string()).collect();
    let seeds = if seeds.is_empty() { String::new() } else { format!(" --seeds {}", seeds.join(",")) };
    let recipe = run.path.join("recipe.toml");
    // Recipes hold no pictures to draw masks of.
    let command = verb.command() + if verb == Verb::Masks { " IMAGES" } else { "" };
    html! { p.note { "The same again: " code { (command) " --recipe " (recipe.display()) (seeds) " --output NEW" } } }
}

/// A first column, then one for each run; the first of several is the baseline.
fn heads(runs: &[Run], first: &str) -> Vec<Cell> {
    let name = |(at, run): (usize, &Run)| {
        let baseline = at == 0 && runs.len() > 1;
        Cell::markup(html! { (run.name) @if baseline { small { " baseline" } } })
    };
    std::iter::once(Cell::text(first)).chain(runs.iter().enumerate().map(name)).collect()
}

/// Stages with time and peak memory; none without any.
pub fn stages(runs: &[Run]) -> Option<Markup> {
    let mut rows = Vec::new();
    for run in runs {
        for stage in &run.stages {
            let mut cells = if runs.len() > 1 { vec![Cell::text(&run.name)] } else { Vec::new() };
            cells.push(Cell::text(&stage.stage));
            cells.push(Cell::number(time(stage.seconds)));
            cells.push(Cell::number(stage.memory.map_or("–".into(), terminal::memory)));
            cells.push(Cell::text(stage.end.map_or(String::new(), moment)));
            cells.push(Cell::text(if stage.ok { "" } else { "stopped or failed" }));
            rows.push(Row::new(cells));
        }
    }
    let mut head = if runs.len() > 1 { vec![Cell::text("Run")] } else { Vec::new() };
    head.extend([Cell::text("Stage"), Cell::number("Time"), Cell::number("Peak memory"), Cell::text("Ended"), Cell::text("")]);
    let shown = Table { caption: String::new(), head, rows };
    let note = "A resumed stage has a line for each of its parts. Memory is the peak of the whole process until then.";
    (!shown.rows.is_empty()).then(|| html! { p.note { (note) } (table(&shown)) })
}

/// Every setting with its origin. Of several runs, those that differ come first.
pub fn settings(runs: &[Run]) -> Markup {
    if let [run] = runs {
        let row = |(key, setting): &(String, Setting)| Row {
            cells: vec![Cell::code(key), Cell::code(shown(setting)), Cell::text(&setting.origin)],
            strong: false,
            faint: setting.origin == "default",
        };
        let head = ["Setting", "Value", "From"].map(Cell::text).to_vec();
        return table(&Table { caption: String::new(), head, rows: run.recipe.settings.iter().map(row).collect() });
    }
    let mut keys: Vec<&String> = Vec::new();
    for (key, _) in runs.iter().flat_map(|run| &run.recipe.settings) {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    let values = |key: &str| runs.iter().map(|run| run.recipe.setting(key)).collect::<Vec<_>>();
    let differs = |key: &str| values(key).windows(2).any(|two| two[0].map(|s| &s.value) != two[1].map(|s| &s.value));
    let (different, same): (Vec<&String>, Vec<&String>) = keys.into_iter().partition(|key| differs(key));
    let cell = |setting: Option<&Setting>| match setting {
        Some(setting) => Cell::markup(html! { code { (shown(setting)) } " " small { (setting.origin) } }),
        None => Cell::text("–"),
    };
    let row = |key: &&String| Row::new(std::iter::once(Cell::code(key)).chain(values(key).into_iter().map(cell)).collect());
    let once = |key: &&String| {
        let mut origins: Vec<&str> = values(key).into_iter().flatten().map(|setting| setting.origin.as_str()).collect();
        origins.dedup();
        let value = values(key).into_iter().flatten().next().map(shown).unwrap_or_default();
        Row {
            cells: vec![Cell::code(key), Cell::code(value), Cell::text(origins.join(", "))],
            strong: false,
            faint: origins == ["default"],
        }
    };
    let different = Table { caption: String::new(), head: heads(runs, "Setting"), rows: different.iter().map(row).collect() };
    let head = ["Setting", "Value", "From"].map(Cell::text).to_vec();
    let same = Table { caption: String::new(), head, rows: same.iter().map(once).collect() };
    html! {
        @for (title, part) in [("Different", &different), ("The same in all", &same)] {
            @if !part.rows.is_empty() { h3 { (title) } (table(part)) }
        }
    }
}

/// Empty texts are quoted, so that they are seen.
fn shown(setting: &Setting) -> &str {
    if setting.value.is_empty() { "\"\"" } else { &setting.value }
}

/// Versions, machine and hashes of inputs; none without any.
pub fn environment(runs: &[Run]) -> Option<Markup> {
    let names = [
        ("Program", "version"),
        ("System", "system"),
        ("Device", "device"),
        ("Threads", "threads"),
        ("Processors", "processors"),
        ("Processor features", "cpu_features"),
    ];
    if runs.iter().all(|run| run.environment.is_null()) {
        return None;
    }
    let row = |(name, key): &(&str, &str)| {
        let value = |run: &Run| Cell::text(run.environment.get(key).map_or("–".into(), plain));
        Row::new(std::iter::once(Cell::text(name)).chain(runs.iter().map(value)).collect())
    };
    let machine = Table { caption: String::new(), head: heads(runs, ""), rows: names.iter().map(row).collect() };
    let inputs = runs.iter().flat_map(|run| run.environment.get("inputs").and_then(Value::as_object)).flatten();
    let mut inputs: Vec<(&String, String)> = inputs.map(|(name, hash)| (name, plain(hash))).collect();
    inputs.sort();
    inputs.dedup();
    let rows = inputs.iter().map(|(name, hash)| Row::new(vec![Cell::code(name), Cell::code(hash)])).collect();
    let inputs = Table { caption: String::new(), head: vec![Cell::text("Input"), Cell::text("BLAKE3")], rows };
    Some(html! { (table(&machine)) @if !inputs.rows.is_empty() { h3 { "Inputs" } (table(&inputs)) } })
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn moments_are_dates_and_minutes() {
        assert_eq!(super::moment(0), "1970-01-01 00:00 UTC");
        assert_eq!(super::moment(1_795_293_057), "2026-11-21 20:30 UTC");
    }
}
