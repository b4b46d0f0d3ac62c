//! Models in GGUF files and in quantised directories: their logits equal transformers' from the
//! same decoded weights. Made by `tools/golden/gguf_models.py` and `packed_models.py`.

use std::path::PathBuf;

use lowrank_engine::{
    BaseFormat, BlockFormat, BlockRows, DType, Device, Isa, NF4_VALUES, Numerics,
};
use lowrank_formats::Checkpoint;
use lowrank_formats::quantised::BlockFormat as StoredFormat;
use lowrank_model::{Batch, LoadOptions, MergeOptions, Model, Task};
use lowrank_testkit::{Tolerance, check_close, golden_root};

/// Both sides sum in f32.
const LOGITS: Tolerance = Tolerance {
    abs: 1e-4,
    rel: 1e-5,
};

fn device() -> Device {
    Device::cpu(Isa::best(), 2).expect("threads")
}

fn golden(name: &str) -> PathBuf {
    golden_root().join("quantised").join(name)
}

fn load(name: &str, task: Task, device: &Device) -> Model {
    let options = LoadOptions::new(task, if task == Task::SingleLabel { 2 } else { 3 });
    let (model, report) = Model::load(&golden(name), &options, device).expect("it loads");
    assert_eq!(report.new, [] as [String; 0]);
    assert_eq!(report.unused, [] as [String; 0]);
    model
}

fn logits(model: &Model, expected: &Checkpoint) -> Vec<f32> {
    let numbers = |name: &str| expected.read_i64(name).unwrap();
    let input_ids: Vec<u32> = numbers("input_ids").iter().map(|&id| id as u32).collect();
    let mut offsets = vec![0];
    for len in numbers("lengths") {
        offsets.push(offsets[offsets.len() - 1] + len as usize);
    }
    let batch = Batch {
        input_ids: &input_ids,
        token_type_ids: None,
        offsets: &offsets,
    };
    model.base_logits(&batch).unwrap()
}

#[test]
fn logits_equal_those_of_transformers_from_the_same_blocks() {
    let tasks = [
        ("gpt2", ".gguf", Task::CausalLm),
        ("bert", ".gguf", Task::TokenClassification),
        ("bert-nf4", "", Task::SingleLabel),
    ];
    for (name, end, task) in tasks {
        let expected = Checkpoint::open_file(&golden(&format!("{name}.expected.safetensors")));
        let expected = expected.unwrap();
        let model = load(&format!("{name}{end}"), task, &device());
        let found = logits(&model, &expected);
        let wanted = expected.read_f32_vec("logits").unwrap();
        check_close(name, &found, &wanted, LOGITS);
    }
}

/// Of each architecture, and each way to stretch rotations; rows are longer than windows and than
/// original lengths. The peer sums in f64.
#[test]
fn decoders_in_gguf_files_have_the_logits_of_transformers() {
    let folder = golden("decoders");
    let mut names: Vec<String> = std::fs::read_dir(&folder)
        .expect("golden files")
        .filter_map(|entry| {
            let name = entry.expect("an entry").file_name().into_string();
            Some(name.ok()?.strip_suffix(".gguf")?.to_owned())
        })
        .collect();
    names.sort();
    assert_eq!(names.len(), 16, "{names:?}");
    for name in names {
        let expected = folder.join(format!("{name}.expected.safetensors"));
        let expected = Checkpoint::open_file(&expected).unwrap();
        let model = load(&format!("decoders/{name}.gguf"), Task::CausalLm, &device());
        let found = logits(&model, &expected);
        let wanted = expected.read_f32_vec("logits").unwrap();
        check_close(&name, &found, &wanted, LOGITS);
    }
}

/// Where products are made in f32, matrices that stay in their blocks give the bits of decoded
/// ones.
#[test]
fn a_file_s_blocks_in_memory_have_the_logits_of_what_they_decode_to() {
    let stored = Numerics {
        weights: BaseFormat::Stored,
        ..Numerics::from(DType::F32)
    };
    let names = [
        "gpt2",
        "decoders/llama-llama3",
        "decoders/qwen3",
        "decoders/gemma3-linear",
    ];
    for name in names {
        let expected = golden(&format!("{name}.expected.safetensors"));
        let expected = Checkpoint::open_file(&expected).unwrap();
        let file = format!("{name}.gguf");
        let blocks = Device::cpu_in(stored, Isa::best(), 2).expect("threads");
        let decoded = load(&file, Task::CausalLm, &device());
        let kept = load(&file, Task::CausalLm, &blocks);
        assert_eq!(
            logits(&kept, &expected),
            logits(&decoded, &expected),
            "{name}"
        );
        let bytes = |model: &Model| model.device().memory().total();
        assert!(bytes(&kept) < bytes(&decoded), "{name}: something is kept");
        let values = |model: &Model| {
            let all = model.modules().parameters();
            all.flat_map(|p| p.to_vec(model.trainables()))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            values(&kept),
            values(&decoded),
            "{name}: as they are written"
        );
    }
}

#[test]
fn the_parts_of_a_file_s_blocks_are_the_engine_s() {
    let numbers = Checkpoint::open_file(&golden("blocks.safetensors")).unwrap();
    let mut read = 0;
    for format in BlockFormat::ALL {
        let name = format.name().to_uppercase();
        let Some(stored) = StoredFormat::from_name(&name) else {
            assert_eq!(format, BlockFormat::Nf4);
            continue;
        };
        let parts = stored.parts(&numbers.read_bytes(&format!("{name}.blocks")).unwrap());
        let wanted = numbers.read_f32_vec(&format!("{name}.values")).unwrap();
        let rows = BlockRows {
            codes: parts.codes,
            scales: parts.scales,
            mins: parts.mins,
            supers: parts.supers,
        };
        let mut found = vec![f32::NAN; wanted.len()];
        rows.values(format, &mut found);
        let bits = |x: &[f32]| x.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&found), bits(&wanted), "{name}");
        read += 1;
    }
    assert_eq!(read, 8);
    let encoded = Checkpoint::open_file(&golden("encoded.safetensors")).unwrap();
    assert_eq!(NF4_VALUES, *encoded.read_f32_vec("NF4.map").unwrap());
}

#[test]
fn a_model_written_as_a_directory_has_the_logits_of_its_file() {
    let expected = Checkpoint::open_file(&golden("gpt2.expected.safetensors")).unwrap();
    let device = device();
    let model = load("gpt2.gguf", Task::CausalLm, &device);
    let dir = tempfile::tempdir().unwrap();
    let options = MergeOptions {
        max_shard_bytes: 1 << 30,
        ..MergeOptions::default()
    };
    model
        .write_merged(&golden("gpt2.gguf"), dir.path(), &options)
        .unwrap();
    let options = LoadOptions::new(Task::CausalLm, 0);
    let (written, _) = Model::load(dir.path(), &options, &device).unwrap();
    assert_eq!(logits(&model, &expected), logits(&written, &expected));
}
