//! What stands beside the weights of a model and belongs to it: the tokenizer's files, generation
//! settings, chat templates. They are copied as they are, whether or not this program can read
//! them. Knows names, not contents.

use std::path::Path;

use lowrank_data::{Tokenizer, TokenizerError};
use lowrank_formats::files::{self, Ceiling};
use lowrank_formats::gguf::is_gguf;
use lowrank_formats::write_atomic;

use crate::error::{RunError, RunResult};

/// Files of settings beside a model are small; a tokenizer is the largest.
const CEILING: Ceiling = Ceiling::TOKENIZER;

/// The list that a merged model holds of its own files.
pub const MERGED_MANIFEST: &str = "lowrank_merged.json";

/// What was done with the files beside a model.
#[derive(Debug, Default)]
pub struct Copied {
    /// Names that were copied.
    pub names: Vec<String>,
    /// Names that were not, each with the reason.
    pub left_out: Vec<String>,
}

/// Why a file is not copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Settings, vocabularies, templates: copied.
    Side,
    /// Written anew with the weights, or about another folder: nothing to say.
    Replaced,
    /// Anything else.
    Other(&'static str),
}

/// Copies what belongs to the model in `from`, a folder or a GGUF file, into `to`.
///
/// # Errors
/// A file cannot be read or written.
pub fn copy(from: &Path, to: &Path) -> RunResult<Copied> {
    let mut copied = Copied::default();
    if is_gguf(from)? {
        // What stands beside a GGUF file belongs to other models.
        return of_gguf(from, to);
    }
    for entry in files::list(from)? {
        let name = entry.name.to_string_lossy().into_owned();
        if files::is_dir(&entry.path) {
            copied.left_out.push(format!("{name}/ (a folder)"));
            continue;
        }
        match kind(&name) {
            Kind::Replaced => {}
            Kind::Other(what) => copied.left_out.push(format!("{name} ({what})")),
            // A pipe or device that bears such a name would hang or never end.
            Kind::Side if !files::is_file(&entry.path) => {
                copied.left_out.push(format!("{name} (no regular file)"));
            }
            Kind::Side => {
                let bytes = files::read(&entry.path, CEILING)?;
                write_atomic(&to.join(&name), &bytes)?;
                copied.names.push(name);
            }
        }
    }
    Ok(copied)
}

/// The tokenizer of a GGUF file as transformers has it; without one there is nothing.
fn of_gguf(file: &Path, to: &Path) -> RunResult<Copied> {
    let names = match Tokenizer::of_model(file, None) {
        Ok(tokenizer) => {
            let saved = tokenizer.save_files(to);
            saved.map_err(|error| RunError::from_error(&error))?;
            vec!["tokenizer.json", "tokenizer_config.json"]
        }
        Err(TokenizerError::NotFound { .. }) => Vec::new(),
        Err(error) => return Err(RunError::from_error(&error)),
    };
    Ok(Copied {
        names: names.into_iter().map(str::to_owned).collect(),
        left_out: Vec::new(),
    })
}

/// Told by the name, as every program that reads such folders tells them.
fn kind(name: &str) -> Kind {
    let lower = name.to_ascii_lowercase();
    let is = |names: &[&str]| names.contains(&lower.as_str());
    let ends = |ends: &[&str]| ends.iter().any(|end| lower.ends_with(end));
    let starts = |starts: &[&str]| starts.iter().any(|start| lower.starts_with(start));
    if lower.starts_with('.') {
        return Kind::Replaced;
    }
    if is(&[
        "config.json",
        "adapter_config.json",
        "lowrank.json",
        MERGED_MANIFEST,
    ]) || ends(&[".safetensors", ".safetensors.index.json", ".bin.index.json"])
        || starts(&["pytorch_model", "adapter_model"])
    {
        return Kind::Replaced;
    }
    if ends(&[
        ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".ot", ".tflite",
        ".npz",
    ]) {
        return Kind::Other("other weights");
    }
    if is(&[
        "trainer_state.json",
        "state.json",
        "summary.json",
        "before.json",
    ]) || ends(&["_results.json"])
    {
        return Kind::Other("of a run");
    }
    if starts(&["readme", "license", "notice", "requirements"]) || ends(&[".md"]) {
        return Kind::Other("about the base");
    }
    let names = [
        "vocab",
        "merges",
        "tokenizer",
        "sentencepiece",
        "spiece",
        "spm",
        "chat_template",
    ];
    let side = ends(&[
        ".json",
        ".txt",
        ".model",
        ".jinja",
        ".tiktoken",
        ".vocab",
        ".bpe",
        ".codes",
        ".spm",
    ]);
    if side || starts(&names) {
        return Kind::Side;
    }
    match ends(&[".py"]) {
        true => Kind::Other("code"),
        false => Kind::Other("unknown"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_and_vocabularies_are_told_from_weights_and_pages() {
        for name in [
            "tokenizer.json",
            "tokenizer_config.json",
            "tokenizer.model",
            "vocab.txt",
            "vocab-src.json",
            "merges.txt",
            "spiece.model",
            "sentencepiece.bpe.model",
            "special_tokens_map.json",
            "added_tokens.json",
            "generation_config.json",
            "chat_template.jinja",
            "chat_template.json",
            "preprocessor_config.json",
            "bpe.codes",
            "qwen.tiktoken",
        ] {
            assert_eq!(kind(name), Kind::Side, "{name}");
        }
        for name in [
            "config.json",
            "model.safetensors",
            "model-00001-of-00002.safetensors",
            "model.safetensors.index.json",
            "pytorch_model.bin",
            "pytorch_model.bin.index.json",
            ".gitattributes",
        ] {
            assert_eq!(kind(name), Kind::Replaced, "{name}");
        }
        for name in [
            "README.md",
            "tf_model.h5",
            "training_args.bin",
            "modeling_x.py",
            "trainer_state.json",
        ] {
            assert!(matches!(kind(name), Kind::Other(_)), "{name}");
        }
    }

    #[test]
    fn files_are_copied_byte_for_byte_and_the_rest_is_named() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let write =
            |name: &str, bytes: &[u8]| std::fs::write(from.path().join(name), bytes).unwrap();
        write("tokenizer.json", b"{ broken");
        write("sentencepiece.bpe.model", &[0, 255, 1]);
        write("flax_model.msgpack", b"x");
        std::fs::create_dir(from.path().join("onnx")).unwrap();
        let copied = copy(from.path(), to.path()).unwrap();
        assert_eq!(copied.names, ["sentencepiece.bpe.model", "tokenizer.json"]);
        assert_eq!(
            copied.left_out,
            ["flax_model.msgpack (other weights)", "onnx/ (a folder)"]
        );
        let back = std::fs::read(to.path().join("sentencepiece.bpe.model")).unwrap();
        assert_eq!(back, [0, 255, 1]);
    }
}
