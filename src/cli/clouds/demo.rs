//! `clouds demo`: the whole idea on drawn streets, with the commands a user would type.

use crate::base::Result;
use crate::cli::demo::runner::{Demo, DemoArgs, SOURCE, Script, Step, compared};
use crate::io::atomic;
use serde_json::{Value, json};

/// What the source never shows; the folders of the tests are called after it.
const LOOKS: [&str; 4] = ["night", "fog", "rain", "snow"];
/// Describes all tests together.
const UNSEEN: &str = "unseen.toml";
/// The segmenters that are compared: folder, key of the result.
const SEGMENTERS: [(&str, &str); 2] = [("source-only", "source_only"), ("joint", "joint")];

const SCRIPT: Script = Script {
    program: "clouds",
    recipes: ["clouds-demo", "clouds-demo-fast"],
    steps: &[
        SOURCE,
        Step {
            title: "streets at night nobody has seen, for the test at the end",
            folder: "unseen/night",
            seconds: [1.0, 1.0],
            command: "dataset render-street --look night --seed {seed}2 --count {test}",
        },
        Step {
            title: "streets in fog",
            folder: "unseen/fog",
            seconds: [1.0, 1.0],
            command: "dataset render-street --look fog --seed {seed}3 --count {test}",
        },
        Step {
            title: "streets in rain",
            folder: "unseen/rain",
            seconds: [1.0, 1.0],
            command: "dataset render-street --look rain --seed {seed}4 --count {test}",
        },
        Step {
            title: "streets in snow",
            folder: "unseen/snow",
            seconds: [1.0, 1.0],
            command: "dataset render-street --look snow --seed {seed}5 --count {test}",
        },
        Step {
            title: "prompts of streets in all kinds of light and weather",
            folder: "prompts",
            seconds: [1.0, 1.0],
            command: "prompts",
        },
        Step {
            title: "nano repaints the streets after them",
            folder: "generate",
            seconds: [201.0, 20.0],
            command: "generate --prompts @/prompts --model nano --init-images @/source/images --init-style prompt",
        },
        Step {
            title: "a segmenter on a frozen CLIP learns from the source",
            folder: "start",
            seconds: [208.0, 25.0],
            command: "train --source street=@/source --iterations {start}",
        },
        Step {
            title: "it goes on with the source alone",
            folder: "source-only",
            seconds: [78.0, 10.0],
            command: "train --source street=@/source --init @/start",
        },
        Step {
            title: "or with the source and what was painted, which a slow copy of it labels",
            folder: "joint",
            seconds: [92.0, 15.0],
            command: "train --stage joint --source street=@/source --generated @/generate --init-images @/source/images \
                  --init @/start",
        },
    ],
};

/// Runs the verb.
pub(super) fn run(args: &DemoArgs) -> Result<()> {
    let demo = Demo::open(&SCRIPT, args)?;
    demo.run(|folder| if folder == "unseen/snow" { describe(&demo) } else { Ok(()) })?;
    let mut result = json!({});
    for (folder, key) in SEGMENTERS {
        for look in LOOKS {
            let scores = demo.scores(folder, &format!("{look}.toml"), Some(&format!("{folder}/overlays/{look}")))?;
            result[key][look] = scores["mIoU"].clone();
        }
        result[key]["all"] = demo.scores(folder, UNSEEN, None)?["mIoU"].clone();
    }
    demo.finish(&SEGMENTERS.map(|(folder, _)| folder), result, table)
}

/// The data sets of the tests, one by one and together.
fn describe(demo: &Demo) -> Result<()> {
    LOOKS.iter().try_for_each(|look| demo.describe(&format!("{look}.toml"), &format!("unseen/{look}")))?;
    let text = "extends = \"street\"\nroot = \"unseen\"\nimages = \"*/images/*.png\"\nlabels = \"{dir}/../labels/{stem}.png\"\n\
                [splits]\nval = \"*/images/*.png\"\n";
    atomic::write(&demo.path(UNSEEN), text.as_bytes())
}

/// mIoU of both segmenters by look and what the painted streets changed, in percent.
fn table(result: &Value) -> String {
    let row = |look: &&'static str| (*look, &result["source_only"][look], &result["joint"][look]);
    compared(["mIoU, %", "source-only", "joint"], LOOKS.iter().chain(&["all"]).map(row))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_every_look_and_what_is_missing() {
        let text =
            table(&json!({ "source_only": { "night": 0.25, "all": 0.2 }, "joint": { "night": 0.3, "all": 0.3, "fog": 0.1 } }));
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1], ["night", "25.0", "30.0", "+5.0"]);
        assert_eq!(lines[2], ["fog", "–", "10.0", "–"]);
        assert_eq!(lines[5], ["all", "20.0", "30.0", "+10.0"]);
    }
}
