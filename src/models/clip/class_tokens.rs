//! Token ids of the class prompts, so that checkpoints that compare with class names need no vocabulary beside them.

use crate::base::{Error, Result};

/// Beginning and end of a text.
const ENDS: [u32; 2] = [49_406, 49_407];

/// The ids of every word of the class prompts in CLIP's vocabulary (49,408 entries).
const WORDS: [(&str, &[u32]); 74] = [
    (".", &[269]),
    ("a", &[320]),
    ("bicycle", &[11652]),
    ("bicycles", &[31326]),
    ("bike", &[3701]),
    ("bikes", &[9227]),
    ("brick", &[9518]),
    ("building", &[2307]),
    ("buildings", &[8866]),
    ("bus", &[2840]),
    ("buses", &[12879]),
    ("bushes", &[37578]),
    ("car", &[1615]),
    ("cars", &[3346]),
    ("ceiling", &[12374]),
    ("clouds", &[6244]),
    ("dirt", &[11795]),
    ("edifice", &[8750, 69, 733]),
    ("edifices", &[8750, 1788, 542]),
    ("fence", &[12679]),
    ("fences", &[34312]),
    ("freight", &[17023]),
    ("grass", &[5922]),
    ("house", &[1212]),
    ("in", &[530]),
    ("is", &[533]),
    ("large", &[3638]),
    ("light", &[1395]),
    ("lights", &[3073]),
    ("locomotive", &[30439]),
    ("locomotives", &[46147, 7570]),
    ("medium", &[8675]),
    ("motorcycle", &[10297]),
    ("motorcycles", &[24869]),
    ("mountain", &[3965]),
    ("of", &[539]),
    ("palm", &[8612]),
    ("pavement", &[27669]),
    ("person", &[2533]),
    ("photo", &[1125]),
    ("pole", &[8170]),
    ("poles", &[22585]),
    ("railroad", &[17080]),
    ("rider", &[9707]),
    ("river", &[2473]),
    ("road", &[1759]),
    ("rock", &[2172]),
    ("sand", &[5094]),
    ("scene", &[3562]),
    ("sea", &[2102]),
    ("sidewalk", &[23278]),
    ("sign", &[2292]),
    ("sky", &[2390]),
    ("small", &[2442]),
    ("snow", &[2583]),
    ("stone", &[2441]),
    ("stop", &[1691]),
    ("terrain", &[20184]),
    ("the", &[518]),
    ("there", &[997]),
    ("this", &[589]),
    ("tile", &[8227]),
    ("traffic", &[3399]),
    ("train", &[3231]),
    ("trains", &[9541]),
    ("tree", &[2677]),
    ("trees", &[4682]),
    ("truck", &[4629]),
    ("trucks", &[9569]),
    ("vegetation", &[33947]),
    ("wall", &[2569]),
    ("walls", &[8258]),
    ("water", &[1573]),
    ("wood", &[1704]),
];

/// The ids of a class prompt, filled up with 0 to `context`, as open_clip's tokenizer gives them.
///
/// # Errors
/// A word that is in no class prompt, or more tokens than fit.
pub fn class_token_ids(prompt: &str, context: usize) -> Result<Vec<u32>> {
    let lower = prompt.to_lowercase().replace('.', " .");
    let mut ids = vec![ENDS[0]];
    for word in lower.split_whitespace() {
        let Ok(at) = WORDS.binary_search_by(|(known, _)| known.cmp(&word)) else {
            return Err(Error::Usage(format!("`{word}` of `{prompt}` is in no class prompt")));
        };
        ids.extend_from_slice(WORDS[at].1);
    }
    ids.push(ENDS[1]);
    if ids.len() > context {
        return Err(Error::Usage(format!("`{prompt}` has {} tokens, and the text tower has room for {context}", ids.len())));
    }
    ids.resize(context, 0);
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::clip::{STREET_CLASSES, class_prompts};

    /// All ids of all prompts as open_clip 3.3 has them, in one number: h ← h · 1,000,003 + id.
    #[test]
    fn ids_are_those_of_open_clip() {
        let prompts = class_prompts(STREET_CLASSES.concat());
        let ids = prompts.iter().flat_map(|prompt| class_token_ids(prompt, 77).unwrap());
        let digest = ids.fold(0u64, |digest, id| digest.wrapping_mul(1_000_003).wrapping_add(u64::from(id)));
        assert_eq!(digest, 153_592_598_700_904_712);
        assert_eq!(
            class_token_ids("a photo of a edifice.", 10).unwrap(),
            [49406, 320, 1125, 539, 320, 8750, 69, 733, 269, 49407]
        );
        assert!(class_token_ids("a photo of a zebra.", 77).is_err() && class_token_ids("a photo of a road.", 7).is_err());
    }
}
