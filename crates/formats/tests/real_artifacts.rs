//! Real files of other people. They are not part of the repository: without them these tests say so
//! and check nothing.

mod common;

use common::{names, scratch, shared};
use lowrank_formats::peft::{AdapterFile, LoraConfig, Loralib, Matcher, write_adapter};
use lowrank_formats::torch::TorchFile;
use lowrank_formats::{Checkpoint, ConfigReader, FormatError, read_json, to_python_json};

#[test]
fn published_adapter_configurations_come_back_byte_for_byte() {
    let Some(dir) = shared("artifacts/peft") else {
        return;
    };
    let (mut lora, mut other) = (0, 0);
    for name in names(&dir)
        .into_iter()
        .filter(|name| name.ends_with("adapter_config.json"))
    {
        let path = dir.join(&name);
        match LoraConfig::read(&path) {
            Ok(config) => {
                assert_eq!(config.to_bytes(), std::fs::read(&path).unwrap(), "{name}");
                assert!(name.starts_with("lora__"), "{name}");
                let special = ["bdlora", "dora", "kasa"]
                    .iter()
                    .any(|word| name.contains(word));
                assert_eq!(!config.unsupported_fields().is_empty(), special, "{name}");
                lora += 1;
            }
            Err(FormatError::NotLora { .. }) => {
                assert!(!name.starts_with("lora__"), "{name}");
                other += 1;
            }
            Err(error) => panic!("{name}: {error}"),
        }
    }
    assert_eq!((lora, other), (10, 8));
}

#[test]
fn the_papers_own_checkpoint_is_read_and_becomes_an_adapter() {
    let Some(dir) = shared("artifacts/loralib") else {
        return;
    };
    let pickled = Checkpoint::open_file(&dir.join("roberta_base_lora_mnli.bin")).unwrap();
    let safe = Checkpoint::open_file(&dir.join("roberta_base_lora_mnli.safetensors")).unwrap();
    assert_eq!(pickled.infos().len(), 52);
    assert_eq!(safe.infos().len(), 52);
    let values: usize = pickled.infos().map(|info| info.numel()).sum();
    assert_eq!(values, 887_811);
    for info in safe.infos() {
        let other = pickled.info(&info.name).unwrap();
        assert_eq!((other.dtype, &other.shape), (info.dtype, &info.shape));
        assert_eq!(
            pickled.read_bytes(&info.name).unwrap(),
            safe.read_bytes(&info.name).unwrap()
        );
    }
    let loralib = Loralib::read(&dir.join("roberta_base_lora_mnli.bin")).unwrap();
    assert_eq!(loralib.modules.len(), 24);
    assert_eq!(loralib.target_modules, ["query", "value"]);
    assert_eq!(loralib.modules_to_save, ["classifier"]);
    let config = loralib.config(16.0);
    let out = scratch("loralib_to_peft");
    let tensors: Vec<_> = loralib
        .tensors
        .iter()
        .map(|(key, tensor)| (key, tensor.shape.as_slice(), tensor.data.as_slice()))
        .collect();
    write_adapter(&out, &config.into(), &tensors).unwrap();
    let matcher = Matcher::new(&LoraConfig::read(&out).unwrap()).unwrap();
    assert_eq!(
        matcher
            .scaling("roberta.encoder.layer.3.attention.self.query")
            .unwrap(),
        2.0
    );
    assert_eq!(AdapterFile::read(&out).unwrap().len(), 52);
}

#[test]
fn a_fairseq_checkpoint_is_read_with_its_arguments() {
    let Some(dir) = shared("models/sapiens-roberta") else {
        return;
    };
    let file = TorchFile::open(&dir.join("checkpoint_vh.pt")).unwrap();
    let args = file.root().get("args").unwrap();
    assert_eq!(args.kind(), "argparse.Namespace");
    assert_eq!(args.get("encoder_layers").unwrap().as_i64(), Some(4));
    let pickled = Checkpoint::open_file(&dir.join("checkpoint_vh.pt")).unwrap();
    let safe = Checkpoint::open_dir(&dir).unwrap();
    assert!(pickled.infos().len() > 50, "{}", pickled.infos().len());
    // Fairseq's names differ; the word embeddings are the same values.
    let ours = pickled
        .infos()
        .find(|info| info.name.ends_with("embed_tokens.weight"))
        .unwrap();
    let theirs = safe
        .info("roberta.embeddings.word_embeddings.weight")
        .unwrap();
    assert_eq!(ours.shape, theirs.shape);
    assert_eq!(
        pickled.read_f32_vec(&ours.name).unwrap(),
        safe.read_f32_vec(&theirs.name).unwrap()
    );
}

#[test]
fn real_model_configurations_are_read_and_rendered_as_python_does() {
    for name in ["models/sapiens-roberta", "models/stories260k"] {
        let Some(dir) = shared(name) else {
            return;
        };
        let value = read_json(&dir.join("config.json")).unwrap();
        let reader = ConfigReader::new(&dir.join("config.json"), &value);
        assert!(reader.usize("vocab_size", 1..=1 << 20) > 0);
        assert!(reader.usize("num_hidden_layers", 1..=1000) > 0);
        reader.finish().unwrap();
        assert!(to_python_json(&value).starts_with("{\n  \""));
    }
}
