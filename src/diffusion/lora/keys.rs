//! The names of tensors in adapter files of all dialects: which layer a key is for, and the key of a layer.

use super::Component;
use std::fmt;

/// The word before an adapter of peft that stands in a folder of its own.
const PEFT: &str = "base_model.model.";

/// A way to write adapters down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Dialect {
    /// One file that diffusers loads: `unet.MODULE.lora.down.weight`, or with peft's words `unet.MODULE.lora_A.weight`.
    #[default]
    Diffusers,
    /// Before diffusers 0.17: the attention's processors, `MODULE.processor.to_q_lora.down.weight`. Read only.
    DiffusersOld,
    /// A folder for each network, with `adapter_config.json`: `base_model.model.MODULE.lora_A.weight`.
    Peft,
    /// One file for A1111, ComfyUI and kohya's scripts: `lora_unet_MODULE_WITH_UNDERSCORES.lora_down.weight`, with `.alpha`.
    Kohya,
}

impl fmt::Display for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Diffusers => "diffusers",
            Self::DiffusersOld => "diffusers before 0.17",
            Self::Peft => "peft",
            Self::Kohya => "kohya",
        })
    }
}

/// What a tensor is to its layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Down,
    Up,
    Alpha,
}

/// What a key says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub dialect: Dialect,
    pub component: Component,
    /// Dotted name of the layer, with the text encoder's outermost `text_model`.
    pub module: String,
    pub role: Role,
}

/// Ends of keys. `_lora.down.weight` belongs to names such as `to_q_lora`.
const ENDS: [(&str, Role); 11] = [
    (".lora.down.weight", Role::Down),
    (".lora.up.weight", Role::Up),
    (".lora_linear_layer.down.weight", Role::Down),
    (".lora_linear_layer.up.weight", Role::Up),
    (".lora_A.weight", Role::Down),
    (".lora_B.weight", Role::Up),
    (".lora_down.weight", Role::Down),
    (".lora_up.weight", Role::Up),
    ("_lora.down.weight", Role::Down),
    ("_lora.up.weight", Role::Up),
    (".alpha", Role::Alpha),
];

impl Key {
    /// None for keys of no dialect.
    pub fn parse(key: &str) -> Option<Self> {
        let (rest, end, role) = ENDS.iter().find_map(|(end, role)| Some((key.strip_suffix(end)?, *end, *role)))?;
        let flat = [("lora_unet_", Component::Unet), ("lora_te_", Component::TextEncoder), ("lora_te1_", Component::TextEncoder)];
        if let Some((flat, component)) = flat.iter().find_map(|(prefix, c)| Some((rest.strip_prefix(prefix)?, *c))) {
            return Some(Self { dialect: Dialect::Kohya, component, module: with_dots(flat)?, role });
        }
        let old = end.starts_with('_');
        let named = |component: Component| Some((rest.strip_prefix(component.name())?.strip_prefix('.')?, component));
        let (dialect, module, component) = match named(Component::Unet).or_else(|| named(Component::TextEncoder)) {
            Some((module, component)) => (if old { Dialect::DiffusersOld } else { Dialect::Diffusers }, module, component),
            None if old => (Dialect::DiffusersOld, rest, Component::Unet),
            None => {
                let module = rest.strip_prefix(PEFT)?;
                let text = module.starts_with("text_model.") || module.starts_with("encoder.");
                (Dialect::Peft, module, if text { Component::TextEncoder } else { Component::Unet })
            }
        };
        let module = if old { of_processor(module, component)? } else { module.to_string() };
        // Recent transformers drop the outermost name of the text encoder.
        let bare = component == Component::TextEncoder && module.starts_with("encoder.");
        Some(Self { dialect, component, module: if bare { format!("text_model.{module}") } else { module }, role })
    }

    /// The key in a file of this dialect (diffusers', peft's or kohya's).
    pub fn name(&self) -> String {
        let Self { dialect, component, module, role } = self;
        let down = *role == Role::Down;
        let end = match (dialect, component, role) {
            (_, _, Role::Alpha) => ".alpha",
            (Dialect::Kohya, ..) => {
                if down {
                    ".lora_down.weight"
                } else {
                    ".lora_up.weight"
                }
            }
            (Dialect::Peft, ..) => {
                if down {
                    ".lora_A.weight"
                } else {
                    ".lora_B.weight"
                }
            }
            (_, Component::Unet, _) => {
                if down {
                    ".lora.down.weight"
                } else {
                    ".lora.up.weight"
                }
            }
            (_, Component::TextEncoder, _) => {
                if down {
                    ".lora_linear_layer.down.weight"
                } else {
                    ".lora_linear_layer.up.weight"
                }
            }
        };
        match (dialect, component) {
            (Dialect::Kohya, Component::Unet) => format!("lora_unet_{}{end}", module.replace('.', "_")),
            (Dialect::Kohya, Component::TextEncoder) => format!("lora_te_{}{end}", module.replace('.', "_")),
            (Dialect::Peft, _) => format!("{PEFT}{module}{end}"),
            _ => format!("{}.{module}{end}", component.name()),
        }
    }
}

/// The layer of a key such as `….attn1.processor.to_out` (without `_lora`) or `….self_attn.to_q`.
fn of_processor(module: &str, component: Component) -> Option<String> {
    let (block, layer) = module.rsplit_once('.')?;
    let layer = match (component, layer) {
        (Component::Unet, "to_out") => "to_out.0",
        (Component::Unet, "to_q" | "to_k" | "to_v") => layer,
        (Component::TextEncoder, "to_q") => "q_proj",
        (Component::TextEncoder, "to_k") => "k_proj",
        (Component::TextEncoder, "to_v") => "v_proj",
        (Component::TextEncoder, "to_out") => "out_proj",
        _ => return None,
    };
    Some(format!("{}.{layer}", block.strip_suffix(".processor").unwrap_or(block)))
}

/// Names of layers that have an underscore themselves.
const WITH_UNDERSCORE: [&str; 25] = [
    "down_blocks",
    "up_blocks",
    "mid_block",
    "transformer_blocks",
    "to_q",
    "to_k",
    "to_v",
    "to_out",
    "proj_in",
    "proj_out",
    "time_emb_proj",
    "time_embedding",
    "conv_shortcut",
    "conv_in",
    "conv_out",
    "linear_1",
    "linear_2",
    "text_model",
    "self_attn",
    "q_proj",
    "k_proj",
    "v_proj",
    "out_proj",
    "class_embedding",
    "conv_norm_out",
];
/// And those that have none.
const PLAIN: [&str; 18] = [
    "attentions",
    "resnets",
    "downsamplers",
    "upsamplers",
    "conv",
    "conv1",
    "conv2",
    "attn1",
    "attn2",
    "ff",
    "net",
    "proj",
    "encoder",
    "layers",
    "mlp",
    "fc1",
    "fc2",
    "op",
];

/// A layer's dotted name from kohya's, in which dots have become underscores. None where a word is no layer's of Stable
/// Diffusion 1 or 2.
fn with_dots(flat: &str) -> Option<String> {
    let (mut words, mut rest) = (Vec::new(), flat);
    while !rest.is_empty() {
        let whole = |name: &&str| rest.strip_prefix(*name).is_some_and(|after| after.is_empty() || after.starts_with('_'));
        let word = match WITH_UNDERSCORE.iter().copied().find(whole) {
            Some(name) => name,
            None => {
                let word = rest.split('_').next()?;
                let known = PLAIN.contains(&word) || (!word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit()));
                known.then_some(word)?
            }
        };
        words.push(word);
        rest = rest[word.len()..].strip_prefix('_').unwrap_or("");
    }
    (!words.is_empty()).then(|| words.join("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUERY: &str = "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q";
    const OUT: &str = "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0";
    const TEXT: &str = "text_model.encoder.layers.11.self_attn.out_proj";

    fn parsed(key: &str) -> Key {
        Key::parse(key).unwrap_or_else(|| panic!("{key}"))
    }

    #[test]
    fn keys_of_all_dialects_name_their_layer() {
        let unet = [
            (Dialect::Diffusers, QUERY, format!("unet.{QUERY}.lora.down.weight")),
            (Dialect::Diffusers, QUERY, format!("unet.{QUERY}.lora_A.weight")),
            (Dialect::Peft, QUERY, format!("base_model.model.{QUERY}.lora_A.weight")),
            (Dialect::Kohya, QUERY, format!("lora_unet_{}.lora_down.weight", QUERY.replace('.', "_"))),
            (Dialect::Kohya, OUT, format!("lora_unet_{}.lora_down.weight", OUT.replace('.', "_"))),
            (Dialect::DiffusersOld, QUERY, format!("{}.processor.to_q_lora.down.weight", QUERY.trim_end_matches(".to_q"))),
            (Dialect::DiffusersOld, OUT, format!("unet.{}.processor.to_out_lora.down.weight", OUT.trim_end_matches(".to_out.0"))),
        ];
        for (dialect, module, key) in unet {
            assert_eq!(
                parsed(&key),
                Key { dialect, component: Component::Unet, module: module.into(), role: Role::Down },
                "{key}"
            );
        }
        let text = [
            (Dialect::Diffusers, format!("text_encoder.{TEXT}.lora_linear_layer.up.weight")),
            (Dialect::Diffusers, format!("text_encoder.{}.lora_B.weight", TEXT.trim_start_matches("text_model."))),
            (Dialect::Peft, format!("base_model.model.{TEXT}.lora_B.weight")),
            (Dialect::Kohya, format!("lora_te_{}.lora_up.weight", TEXT.replace('.', "_"))),
            (Dialect::Kohya, format!("lora_te1_{}.lora_up.weight", TEXT.replace('.', "_"))),
            (Dialect::DiffusersOld, format!("text_encoder.{}.to_out_lora.up.weight", TEXT.trim_end_matches(".out_proj"))),
        ];
        for (dialect, key) in text {
            let component = Component::TextEncoder;
            assert_eq!(parsed(&key), Key { dialect, component, module: TEXT.into(), role: Role::Up }, "{key}");
        }
        for key in ["lora_unet_input_blocks_1_1_proj_in.alpha", "unet.a.dora_scale", "lora_te2_text_model_encoder.alpha", "alpha"]
        {
            assert_eq!(Key::parse(key), None, "{key}");
        }
    }

    #[test]
    fn written_keys_are_read_back() {
        let wide =
            ["up_blocks.1.attentions.2.transformer_blocks.0.ff.net.0.proj", "down_blocks.2.resnets.1.conv_shortcut", "conv_in"];
        for dialect in [Dialect::Diffusers, Dialect::Peft, Dialect::Kohya] {
            for role in [Role::Down, Role::Up, Role::Alpha] {
                for (component, module) in [(Component::Unet, wide[0]), (Component::Unet, wide[1]), (Component::Unet, wide[2])]
                    .into_iter()
                    .chain([(Component::TextEncoder, TEXT), (Component::TextEncoder, "text_model.encoder.layers.0.mlp.fc1")])
                {
                    let key = Key { dialect, component, module: module.into(), role };
                    assert_eq!(parsed(&key.name()), key);
                }
            }
        }
    }
}
