//! An adapter that brings its table of tokens is the same as a base that has this table, bit for
//! bit: of the same size and grown, of encoders and of decoders that tie theirs.
#![expect(clippy::too_many_lines, reason = "a test is one story, told in order")]

use std::path::Path;

use lowrank_engine::{Device, Isa};
use lowrank_formats::peft::{AdapterConfig, AdapterFile, LoraConfig, TargetModules, TokenIndices};
use lowrank_formats::{Checkpoint, OutTensor, write_safetensors};
use lowrank_model::{Batch, LoadOptions, MergeOptions, Model, ModelConfig, Task, TokenTables};
use lowrank_testkit::{Golden, Tolerance, check_close};
use serde_json::Value;

/// A case: golden model, the tables' names, and how many rows grow.
struct Case {
    name: &'static str,
    task: Task,
    tables: &'static [&'static str],
    grown: usize,
}

const CASES: [Case; 4] = [
    Case {
        name: "bert-single-label",
        task: Task::SingleLabel,
        tables: &["bert.embeddings.word_embeddings.weight"],
        grown: 0,
    },
    Case {
        name: "bert-single-label",
        task: Task::SingleLabel,
        tables: &["bert.embeddings.word_embeddings.weight"],
        grown: 3,
    },
    Case {
        name: "gpt2-causal",
        task: Task::CausalLm,
        tables: &["transformer.wte.weight", "lm_head.weight"],
        grown: 2,
    },
    Case {
        name: "opt-causal",
        task: Task::CausalLm,
        tables: &["model.decoder.embed_tokens.weight"],
        grown: 5,
    },
];

fn device() -> Device {
    Device::cpu(Isa::best(), 1).expect("threads start")
}

fn options(task: Task) -> LoadOptions {
    LoadOptions::new(task, 2)
}

fn logits(model: &Model, last: u32) -> Vec<u32> {
    let batch = Batch {
        input_ids: &[3, 10, 21, last, 2],
        token_type_ids: None,
        offsets: &[0, 5],
    };
    let logits = model.logits(&batch).expect("logits");
    logits.into_iter().map(f32::to_bits).collect()
}

/// (name, shape, values) of a file's tensors.
type Tensors = Vec<(String, Vec<usize>, Vec<f32>)>;

fn tensors_of(path: &Path) -> Tensors {
    let checkpoint = match path.is_dir() {
        true => Checkpoint::open_dir(path),
        false => Checkpoint::open_file(path),
    };
    let checkpoint = checkpoint.expect("opens");
    (checkpoint.infos())
        .map(|info| {
            let values = checkpoint.read_f32_vec(&info.name).expect("a tensor");
            (info.name.clone(), info.shape.clone(), values)
        })
        .collect()
}

fn write(tensors: &Tensors, file: &Path) {
    let out: Vec<_> = (tensors.iter())
        .map(|(name, shape, values)| OutTensor::f32(name, shape, values))
        .collect();
    write_safetensors(file, &out, &[]).expect("written");
}

/// Other values, with more rows.
fn other_table(old: &[f32], width: usize, grown: usize) -> Vec<f32> {
    let more = (0..grown * width).map(|i| (i as f32 * 0.7).sin() * 0.3);
    (old.iter().map(|v| v * 0.5 + 0.01)).chain(more).collect()
}

#[test]
fn an_adapter_with_the_token_table_is_a_base_with_that_table() {
    for case in CASES {
        let golden = Golden::open(case.name).expect("a golden case");
        let (base, adapter) = (
            golden.model_dir(),
            golden.adapter_dir().expect("an adapter"),
        );
        let dir = tempfile::tempdir().expect("a folder");
        let (grown, with_table) = (dir.path().join("grown"), dir.path().join("adapter"));
        std::fs::create_dir(&grown).unwrap();
        std::fs::create_dir(&with_table).unwrap();
        let mut model_tensors = tensors_of(&base);
        let mut adapter_tensors = tensors_of(&adapter.join("adapter_model.safetensors"));
        let mut rows = 0;
        let first = model_tensors
            .iter()
            .position(|t| t.0 == case.tables[0])
            .unwrap();
        let mut tied = Vec::new();
        for name in case.tables {
            let at = model_tensors
                .iter()
                .position(|t| t.0 == *name)
                .unwrap_or(first);
            let width = model_tensors[at].1[1];
            let is_tied = at == first && *name != case.tables[0];
            let values = match is_tied {
                true => std::mem::take(&mut tied),
                false => other_table(&model_tensors[at].2, width, case.grown),
            };
            rows = values.len() / width;
            adapter_tensors.push((
                format!("base_model.model.{name}"),
                vec![rows, width],
                values.clone(),
            ));
            model_tensors[at].1 = vec![rows, width];
            if at == first {
                tied.clone_from(&values);
            }
            model_tensors[at].2 = values;
        }
        write(&model_tensors, &grown.join("model.safetensors"));
        write(
            &adapter_tensors,
            &with_table.join("adapter_model.safetensors"),
        );
        let config_file = "adapter_config.json";
        std::fs::copy(adapter.join(config_file), with_table.join(config_file)).unwrap();
        let mut config: Value =
            serde_json::from_slice(&std::fs::read(base.join("config.json")).unwrap()).unwrap();
        config["vocab_size"] = rows.into();
        std::fs::write(grown.join("config.json"), config.to_string()).unwrap();

        let options = options(case.task);
        let (mut expected, _) = Model::load(&grown, &options, &device()).unwrap();
        expected.load_adapter(&adapter).unwrap();
        let config = ModelConfig::read(&base.join("config.json")).unwrap();
        let lora = AdapterConfig::read(&with_table).unwrap();
        let file = AdapterFile::read(&with_table).unwrap();
        let (file, tables) = TokenTables::take(file, &lora, &config).unwrap();
        let tables = tables.expect("the adapter brings tables");
        assert_eq!(
            (tables.rows(), tables.is_trained()),
            (rows, false),
            "{}",
            case.name
        );
        let (mut found, report) =
            Model::load_with_tables(&base, config, Some(&tables), &options, &device()).unwrap();
        assert!(report.new.is_empty(), "{}: {:?}", case.name, report.new);
        found.attach_tensors(&lora, file).unwrap();
        let last = rows as u32 - 1;
        assert_eq!(
            logits(&found, last),
            logits(&expected, last),
            "{}",
            case.name
        );
        // Merged, the directory has the vocabulary of the tables.
        let merged = dir.path().join("merged");
        std::fs::create_dir(&merged).unwrap();
        let merge = MergeOptions {
            max_shard_bytes: 1 << 30,
            ..MergeOptions::default()
        };
        found.write_merged(&base, &merged, &merge).unwrap();
        let config = ModelConfig::read(&merged.join("config.json")).unwrap();
        assert_eq!(config.facts.vocab_size, rows, "{}", case.name);
        Model::load(&merged, &options, &device()).unwrap();
    }
}

#[test]
fn tables_that_contradict_each_other_are_refused() {
    let golden = Golden::open("gpt2-causal").unwrap();
    let adapter = golden.adapter_dir().unwrap();
    let config = ModelConfig::read(&golden.model_dir().join("config.json")).unwrap();
    let lora = AdapterConfig::read(&adapter).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let refused = |head_rows: usize, value: f32| {
        let mut tensors = tensors_of(&adapter.join("adapter_model.safetensors"));
        let wte = "base_model.model.transformer.wte.weight".to_owned();
        tensors.push((wte, vec![4, 2], vec![0.5; 8]));
        let head = "base_model.model.lm_head.weight".to_owned();
        tensors.push((head, vec![head_rows, 2], vec![value; head_rows * 2]));
        write(&tensors, &dir.path().join("adapter_model.safetensors"));
        let file = AdapterFile::read(dir.path()).unwrap();
        TokenTables::take(file, &lora, &config)
            .unwrap_err()
            .to_string()
    };
    assert!(refused(4, 0.25).contains("differ in the adapter"));
    assert!(refused(4, f32::NAN).contains("finite"));
    assert!(refused(5, 0.5).contains("differ in the adapter"));
}

#[test]
fn one_of_two_tied_tables_is_refused() {
    let golden = Golden::open("gpt2-causal").unwrap();
    let adapter = golden.adapter_dir().unwrap();
    let config = ModelConfig::read(&golden.model_dir().join("config.json")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let refused = |more: Tensors, saved: Option<&str>| {
        let mut tensors = tensors_of(&adapter.join("adapter_model.safetensors"));
        tensors.extend(more);
        write(&tensors, &dir.path().join("adapter_model.safetensors"));
        let mut lora = LoraConfig::read(&adapter).unwrap();
        lora.modules_to_save = saved.map(|name| vec![name.to_owned()]);
        let file = AdapterFile::read(dir.path()).unwrap();
        let error = TokenTables::take(file, &lora.into(), &config).unwrap_err();
        assert!(error.hint().unwrap().contains("merge_and_unload"));
        error.to_string()
    };
    let tensor = |name: &str, shape: [usize; 2]| {
        let values = vec![0.5; shape[0] * shape[1]];
        (format!("base_model.model.{name}"), shape.to_vec(), values)
    };
    for (one, other) in [
        ("lm_head", "transformer.wte"),
        ("transformer.wte", "lm_head"),
    ] {
        let text = refused(vec![tensor(&format!("{one}.weight"), [4, 2])], Some(one));
        assert!(
            text.contains(&format!("trains `{one}` apart from `{other}`")),
            "{text}"
        );
    }
}

#[test]
fn low_rank_values_that_no_layer_takes_are_never_those_of_the_base() {
    let golden = Golden::open("gpt2-causal").unwrap();
    let adapter = golden.adapter_dir().unwrap();
    let options = options(Task::CausalLm);
    let attached = |more: &[(&str, [usize; 2])]| {
        let dir = tempfile::tempdir().unwrap();
        let mut tensors = tensors_of(&adapter.join("adapter_model.safetensors"));
        tensors.extend(more.iter().map(|(name, shape)| {
            let values = vec![0.5; shape[0] * shape[1]];
            (format!("base_model.model.{name}"), shape.to_vec(), values)
        }));
        write(&tensors, &dir.path().join("adapter_model.safetensors"));
        let lora = AdapterConfig::read(&adapter).unwrap();
        let (mut model, _) = Model::load(&golden.model_dir(), &options, &device()).unwrap();
        let file = AdapterFile::read(dir.path()).unwrap();
        model
            .attach_tensors(&lora, file)
            .map(|report| report.notes.join("; "))
    };
    let base = ("transformer.h.0.mlp.c_fc.base_layer.weight", [4, 2]);
    let notes = attached(&[base]).unwrap();
    assert!(notes.contains("1 tensors of its base model"), "{notes}");
    let error = attached(&[
        base,
        ("transformer.h.0.mlp.c_fc.lora_A.weight", [1, 4]),
        ("transformer.h.0.mlp.c_fc.lora_B.weight", [2, 1]),
    ]);
    let text = error.unwrap_err().to_string();
    assert!(text.contains("c_fc.lora_A.weight: found [1, 4]"), "{text}");
}

/// Golden cases with rows or low-rank terms of tables.
const TRAINED: [(&str, Task); 5] = [
    ("llama-token-rows", Task::CausalLm),
    ("llama-token-rows-apart", Task::CausalLm),
    ("llama-tables", Task::CausalLm),
    ("gemma2-tables", Task::CausalLm),
    ("bert-token-rows", Task::SingleLabel),
];

fn adapted(golden: &Golden, task: Task) -> Model {
    let (mut model, _) = Model::load(&golden.model_dir(), &options(task), &device()).unwrap();
    let adapter = golden.adapter_dir().unwrap();
    model.load_adapter(&adapter).unwrap();
    model
}

fn values(model: &Model) -> Vec<f32> {
    let ids: Vec<u32> = (0..40).map(|i| i * 7 % 97).collect();
    let batch = Batch {
        input_ids: &ids,
        token_type_ids: None,
        offsets: &[0, 11, 40],
    };
    model.logits(&batch).unwrap()
}

#[test]
fn rows_and_terms_of_tables_are_merged_and_saved_as_they_run() {
    for (name, task) in TRAINED {
        let golden = Golden::open(name).unwrap();
        let (model, dir) = (adapted(&golden, task), tempfile::tempdir().unwrap());
        let merge = MergeOptions {
            max_shard_bytes: 1 << 30,
            ..MergeOptions::default()
        };
        let written = model.write_merged(&golden.model_dir(), dir.path(), &merge);
        let tensors = written.unwrap().tensors;
        let (merged, report) = Model::load(dir.path(), &options(task), &device()).unwrap();
        assert_eq!((report.loaded, report.new.len()), (tensors, 0), "{name}");
        // Measured worst 4e-6.
        let tolerance = Tolerance::new(2e-5, 1e-5);
        check_close(name, &values(&merged), &values(&model), tolerance);

        let (base, _) = Model::load(&golden.model_dir(), &options(task), &device()).unwrap();
        let batch = Batch {
            input_ids: &[5, 90, 41, 8, 33],
            token_type_ids: None,
            offsets: &[0, 5],
        };
        if task == Task::CausalLm {
            let off = model.base_logits(&batch).unwrap();
            assert_eq!(off, base.logits(&batch).unwrap(), "{name}");
        }
        assert_ne!(model.logits(&batch).unwrap(), base.logits(&batch).unwrap());

        model.save_adapter(dir.path(), None).unwrap();
        let (mut again, _) = Model::load(&golden.model_dir(), &options(task), &device()).unwrap();
        again.load_adapter(dir.path()).unwrap();
        assert_eq!(values(&again), values(&model), "{name}");
        let mut in_memory = adapted(&golden, task);
        in_memory.merge_adapters().unwrap();
        check_close(name, &values(&in_memory), &values(&model), tolerance);
    }
}

#[test]
fn fresh_rows_and_terms_of_tables_change_no_bit() {
    for (name, task) in [
        ("llama-tables", Task::CausalLm),
        ("bert-token-rows", Task::SingleLabel),
    ] {
        let golden = Golden::open(name).unwrap();
        let load = || {
            Model::load(&golden.model_dir(), &options(task), &device())
                .unwrap()
                .0
        };
        let mut lora = LoraConfig::read(&golden.adapter_dir().unwrap()).unwrap();
        if task == Task::CausalLm {
            let targets = ["q_proj", "lm_head"].map(str::to_owned).to_vec();
            lora.target_modules = Some(TargetModules::List(targets));
            lora.trainable_token_indices = Some(TokenIndices::Input(vec![3, 96]));
        }
        let mut model = load();
        let report = model.attach_lora(&lora, 5).unwrap();
        assert_eq!(report.rows.len(), 1, "{report:?}");
        assert_eq!(values(&model), values(&load()), "{name}");
    }
}

#[test]
fn rows_that_are_not_there_are_refused() {
    let golden = Golden::open("llama-token-rows").unwrap();
    let refused = |rows: TokenIndices, target: &str| {
        let (mut model, _) =
            Model::load(&golden.model_dir(), &options(Task::CausalLm), &device()).unwrap();
        let mut lora = LoraConfig::read(&golden.adapter_dir().unwrap()).unwrap();
        lora.trainable_token_indices = Some(rows);
        lora.target_modules = Some(TargetModules::List(vec![target.to_owned()]));
        model.attach_lora(&lora, 5).unwrap_err().to_string()
    };
    let of = |name: &str| TokenIndices::ByModule(vec![(name.to_owned(), vec![1])]);
    for (rows, target, expected) in [
        (
            TokenIndices::Input(vec![3, 97]),
            "q_proj",
            "97 is past the table's end",
        ),
        (
            TokenIndices::Input(vec![3, 5, 3]),
            "q_proj",
            "3 is there twice",
        ),
        (
            TokenIndices::Input(vec![]),
            "q_proj",
            "expected ids, found none",
        ),
        (
            of("lm_head"),
            "q_proj",
            "`lm_head` is the table of tokens too",
        ),
        (
            of("norm"),
            "q_proj",
            "`norm`: expected a table of tokens, `model.embed_tokens`",
        ),
        (
            TokenIndices::Input(vec![3]),
            "embed_tokens",
            "is among the targets",
        ),
    ] {
        let found = refused(rows, target);
        assert!(found.contains(expected), "{expected}\n{found}");
    }
}
