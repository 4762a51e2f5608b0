//! The weight files of a diffusers folder: where they lie, and their names in old and new releases.

use super::TensorSource;
use crate::base::{Error, Result};
use candle_core::{Device, Tensor};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// One network of a Stable Diffusion folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// `unet/`
    UNet,
    /// `vae/`
    Vae,
    /// `text_encoder/`
    TextEncoder,
}

impl Part {
    /// Name of its folder.
    pub fn folder(self) -> &'static str {
        match self {
            Self::UNet => "unet",
            Self::Vae => "vae",
            Self::TextEncoder => "text_encoder",
        }
    }

    /// The file that is written.
    pub fn file_name(self) -> &'static str {
        match self {
            Self::UNet | Self::Vae => "diffusion_pytorch_model.safetensors",
            Self::TextEncoder => "model.safetensors",
        }
    }

    /// The files that are read, the best first: full precision before half, safetensors before pickles.
    fn candidates(self) -> [&'static str; 4] {
        match self {
            Self::UNet | Self::Vae => [
                "diffusion_pytorch_model.safetensors",
                "diffusion_pytorch_model.bin",
                "diffusion_pytorch_model.fp16.safetensors",
                "diffusion_pytorch_model.fp16.bin",
            ],
            Self::TextEncoder => ["model.safetensors", "pytorch_model.bin", "model.fp16.safetensors", "pytorch_model.fp16.bin"],
        }
    }

    /// The weight file in the part's folder below `pipeline`.
    ///
    /// # Errors
    /// [`Error::Data`] that names the files looked for when there is none.
    pub fn find(self, pipeline: &Path) -> Result<PathBuf> {
        let folder = pipeline.join(self.folder());
        let names = self.candidates();
        names.iter().map(|name| folder.join(name)).find(|path| path.is_file()).ok_or_else(|| {
            let next = "download the whole model folder, or convert sharded weights to one file";
            Error::data(&folder, format!("one of {}", names.join(", ")), "none of them", next)
        })
    }

    /// Opens the part's weights below `pipeline` under our names (those of current releases, `text_model.` prefix).
    pub fn open(self, pipeline: &Path) -> Result<Box<dyn TensorSource>> {
        Ok(Box::new(self.named(super::open(&self.find(pipeline)?)?)))
    }

    /// `source`, a file of this part of any release, under our names and with our shapes.
    pub fn named<S: TensorSource>(self, source: S) -> PartSource<S> {
        let entries = source.shapes().into_iter().filter_map(|(theirs, shape)| {
            let ours = self.our_name(&theirs)?;
            let shape = if is_pixel_attention(self, &ours) { squeezed(shape) } else { shape };
            Some((ours, (theirs, shape)))
        });
        PartSource { entries: entries.collect(), source }
    }

    /// `tensors` (under our names) under the names that every release reads: the autoencoder's attention keeps its former
    /// names, as in the published Stable Diffusion folders.
    pub fn for_file(self, tensors: &BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
        let former = OLD_ATTENTION.map(|(old, new)| (new, old));
        let name = |ours: &str| if self == Self::Vae { renamed_attention(ours, &former) } else { ours.to_string() };
        tensors.iter().map(|(ours, tensor)| (name(ours), tensor.clone())).collect()
    }

    /// `None` for tensors that are dropped on purpose.
    fn our_name(self, theirs: &str) -> Option<String> {
        match self {
            Self::UNet => Some(theirs.into()),
            Self::Vae => Some(renamed_attention(theirs, &OLD_ATTENTION)),
            Self::TextEncoder => match theirs.strip_prefix("text_model.").unwrap_or(theirs) {
                // A constant table, and the projection that the U-Net does not use.
                "embeddings.position_ids" | "text_projection.weight" => None,
                name => Some(format!("text_model.{name}")),
            },
        }
    }
}

/// Names of the autoencoder's attention layers before diffusers 0.17 → since.
const OLD_ATTENTION: [(&str, &str); 4] = [("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")];

fn renamed_attention(name: &str, table: &[(&str, &str)]) -> String {
    if !name.contains(".attentions.") {
        return name.into();
    }
    let renamed = |(from, to): &(&str, &str)| {
        let (place, end) = name.split_once(&format!(".{from}."))?;
        Some(format!("{place}.{to}.{end}"))
    };
    table.iter().find_map(renamed).unwrap_or_else(|| name.into())
}

/// Attention weights of the autoencoder, which some files hold as 1×1 convolutions.
fn is_pixel_attention(part: Part, name: &str) -> bool {
    part == Part::Vae && name.contains(".attentions.") && name.ends_with(".weight")
}

fn squeezed(shape: Vec<usize>) -> Vec<usize> {
    match shape[..] {
        [outputs, inputs, 1, 1] => vec![outputs, inputs],
        _ => shape,
    }
}

/// A weight file seen under our names; see [`Part::named`].
pub struct PartSource<S> {
    source: S,
    /// our name → their name and our shape
    entries: BTreeMap<String, (String, Vec<usize>)>,
}

impl<S: TensorSource> TensorSource for PartSource<S> {
    fn origin(&self) -> String {
        self.source.origin()
    }

    fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        self.entries.iter().map(|(ours, (_, shape))| (ours.clone(), shape.clone())).collect()
    }

    fn load(&self, name: &str, device: &Device) -> Result<Tensor> {
        let entry = self.entries.get(name).ok_or_else(|| Error::Usage(format!("no tensor named `{name}`")))?;
        Ok(self.source.load(&entry.0, device)?.reshape(entry.1.as_slice())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::DType;

    fn names(part: Part, entries: &[(&str, &[usize])]) -> Vec<(String, Vec<usize>)> {
        let tensor = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        let source: BTreeMap<String, Tensor> = entries.iter().map(|(n, shape)| (n.to_string(), tensor(shape))).collect();
        let named = part.named(source);
        let shapes = named.shapes();
        for (name, shape) in &shapes {
            assert_eq!(named.load(name, &Device::Cpu).unwrap().dims(), shape);
        }
        shapes.into_iter().collect()
    }

    #[test]
    fn old_autoencoder_attention_is_renamed_and_squeezed() {
        let found = names(
            Part::Vae,
            &[
                ("encoder.mid_block.attentions.0.query.weight", &[4, 4, 1, 1]),
                ("encoder.mid_block.attentions.0.proj_attn.bias", &[4]),
                ("encoder.mid_block.attentions.0.group_norm.weight", &[4]),
                ("quant_conv.weight", &[8, 8, 1, 1]),
            ],
        );
        let expected: [(&str, &[usize]); 4] = [
            ("encoder.mid_block.attentions.0.group_norm.weight", &[4]),
            ("encoder.mid_block.attentions.0.to_out.0.bias", &[4]),
            ("encoder.mid_block.attentions.0.to_q.weight", &[4, 4]),
            ("quant_conv.weight", &[8, 8, 1, 1]),
        ];
        assert_eq!(found, expected.map(|(name, shape)| (name.to_string(), shape.to_vec())));
    }

    #[test]
    fn the_text_encoder_has_its_prefix_once_and_no_position_ids() {
        let old = names(
            Part::TextEncoder,
            &[("text_model.final_layer_norm.bias", &[4]), ("text_model.embeddings.position_ids", &[1, 77])],
        );
        assert_eq!(old, names(Part::TextEncoder, &[("final_layer_norm.bias", &[4])]));
    }

    #[test]
    fn a_missing_file_is_told_by_its_names() {
        let message = Part::TextEncoder.find(Path::new("/nowhere")).unwrap_err().to_string();
        assert!(message.contains("model.safetensors, pytorch_model.bin"), "{message}");
    }
}
