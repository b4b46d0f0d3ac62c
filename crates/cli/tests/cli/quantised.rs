//! GGUF files from the command line: trained on, planned, checked, looked into, generated with,
//! merged, converted, refused.

use std::fs;
use std::path::{Path, PathBuf};

use lowrank_formats::gguf::{self, Gguf};
use serde_json::{Value, json};

use crate::support::{Ran, golden, lowrank};

fn file(name: &str) -> String {
    golden("quantised").join(name).display().to_string()
}

/// A folder with rows for the golden files, whose tokenizers know letters.
struct Lab(tempfile::TempDir);

impl Lab {
    fn new() -> Self {
        let lab = Lab(tempfile::tempdir().expect("a folder"));
        let lines = |rows: &dyn Fn(usize) -> Value| {
            (0..12)
                .map(|i| format!("{}\n", rows(i)))
                .collect::<String>()
        };
        let names = ["red", "green", "blue"];
        let texts = lines(&|i| json!({ "text": format!("the {} film", names[i % 3]) }));
        let labelled = lines(&|i| json!({ "text": names[i % 3], "label": names[i % 3] }));
        fs::write(lab.path("texts.jsonl"), texts).unwrap();
        fs::write(lab.path("labelled.jsonl"), labelled).unwrap();
        lab
    }

    /// Rows that need no tokenizer.
    fn ids(&self) {
        let ids = |i: usize| (0..20).map(|at| (7 * i + 5 * at) % 60).collect::<Vec<_>>();
        let rows = (0..12).map(|i| format!("{}\n", json!({ "input_ids": ids(i) })));
        fs::write(self.path("ids.jsonl"), rows.collect::<String>()).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs with `@name` standing for a path in this folder and `%name` for a golden file.
    fn run(&self, line: &str) -> Ran {
        let place = |word: &str| match (word.strip_prefix('@'), word.strip_prefix('%')) {
            (Some(name), _) => self.path(name).display().to_string(),
            (_, Some(name)) => file(name),
            (None, None) => word.to_owned(),
        };
        let words: Vec<String> = line.split(' ').map(place).collect();
        lowrank(&words.iter().map(String::as_str).collect::<Vec<_>>())
    }
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_language_model_in_a_gguf_file_goes_the_whole_way() {
    let lab = Lab::new();
    let train = "train --model %gpt2.gguf --train-file @texts.jsonl --num-train-epochs 2 --per-device-batch-size 4 --max-length 32";
    lab.run(&format!("{train} --task causal_lm --output-dir @run"))
        .ok();
    let notes = read(&lab.path("run/adapter/lowrank.json"));
    assert_eq!(notes["base"]["weights"].as_str().map(str::len), Some(64));
    assert_eq!(notes["base"]["config"]["n_embd"], 32);
    let plan = lab
        .run("plan %gpt2.gguf --task causal_lm --json")
        .ok()
        .json();
    assert!(plan.to_string().contains("gpt2"), "{plan}");
    lab.run("check --model %gpt2.gguf --task causal_lm --train-file @texts.jsonl --max-length 32")
        .ok();
    let words = "generate --model %gpt2.gguf --adapter @run --prompt the --max-new-tokens 4 --json";
    let said = lab.run(words).ok().json();
    lab.run("merge --model %gpt2.gguf --adapter @run --output-dir @merged --verify")
        .ok();
    let merged = lab
        .run("generate --model @merged --prompt the --max-new-tokens 4 --json")
        .ok()
        .json();
    let text = |found: &Value| {
        found
            .to_string()
            .split("\"text\"")
            .nth(1)
            .map(str::to_owned)
    };
    assert_eq!(text(&said), text(&merged));
    // Another file is another base.
    let other = lab.path("other.gguf");
    let mut bytes = fs::read(file("gpt2.gguf")).unwrap();
    let last = bytes.len() - 5;
    bytes[last] ^= 1;
    fs::write(&other, bytes).unwrap();
    lab.run("generate --model @other.gguf --adapter @run --prompt the --max-new-tokens 4")
        .fails(1, &["the adapter was trained on other weights"]);
}

#[test]
fn a_classifier_is_trained_on_a_gguf_file() {
    let lab = Lab::new();
    let rows = "--train-file @labelled.jsonl --num-train-epochs 1 --per-device-batch-size 4";
    lab.run(&format!(
        "train --model %bert.gguf {rows} --task single_label --ignore-mismatched-sizes --output-dir @run"
    ))
    .ok();
    let words = "predict --model %bert.gguf --adapter @run --data-file @labelled.jsonl";
    let predicted = lab.run(words).ok();
    assert_eq!(predicted.stdout.lines().count(), 12);
}

/// Where products are made in f32, an adapter over blocks is the adapter over what they decode to.
#[test]
fn an_adapter_over_a_quantised_base_is_that_over_its_decoded_weights() {
    let lab = Lab::new();
    let rows = "--train-file @texts.jsonl --task causal_lm --num-train-epochs 1 --max-length 32 --precision f32 --target-modules all-linear";
    let mut adapters = Vec::new();
    for format in ["auto", "stored", "f32"] {
        let line = format!(
            "train --model %gpt2.gguf {rows} --base-format {format} --per-device-batch-size 4 --output-dir @{format}"
        );
        lab.run(&line).ok();
        let recorded = fs::read_to_string(lab.path(format).join("config.yaml")).unwrap();
        let wanted = if format == "f32" { "f32" } else { "stored" };
        let line = format!("base_format: {wanted}\n");
        assert!(recorded.contains(&line), "{recorded}");
        adapters
            .push(fs::read(lab.path(format).join("adapter/adapter_model.safetensors")).unwrap());
    }
    assert!(adapters.iter().all(|adapter| *adapter == adapters[0]));
    // A checkpoint is put into blocks as it is read; what is trained on them runs on them too.
    for format in ["q8_0", "q4_0", "nf4"] {
        let numerics = format!("--base-format {format}");
        lab.run(&format!(
            "train --model %gpt2.gguf {rows} {numerics} --per-device-batch-size 4 --output-dir @{format}"
        ))
        .ok();
        let eval =
            format!("eval --model %gpt2.gguf --adapter @{format} --data-file @texts.jsonl --json");
        let loss = |ran: &Ran| ran.json()["metrics"]["loss"].as_f64().unwrap();
        let own = lab.run(&eval).ok();
        assert!(!own.stderr.contains("trained over"), "{}", own.stderr);
        let other = lab.run(&format!("{eval} --base-format f32")).ok();
        let note = format!("the adapter was trained over {format} weights");
        assert!(other.stderr.contains(&note), "{}", other.stderr);
        // Merged is what was trained: the weights as they decode.
        let merge = format!("merge --model %gpt2.gguf --adapter @{format} --dtype f32 --verify");
        lab.run(&format!("{merge} --output-dir @{format}-merged"))
            .ok();
        let merged = "eval --model @FORMAT-merged --data-file @texts.jsonl --json --precision f32";
        let merged = lab.run(&merged.replace("FORMAT", format)).ok();
        let own = lab.run(&format!("{eval} --precision f32")).ok();
        assert!((loss(&merged) - loss(&own)).abs() <= 1e-5, "{format}");
        assert!((loss(&merged) - loss(&other)).abs() > 1e-5, "{format}");
    }
}

/// What was trained, as the files that llama.cpp reads; here read back by this program.
#[test]
fn an_adapter_is_exported_into_its_gguf_base() {
    let lab = Lab::new();
    lab.ids();
    let rows = "--train-file @ids.jsonl --task causal_lm --num-train-epochs 3 --max-length 32 --learning-rate 0.02 --target-modules all-linear";
    for (base, more) in [
        ("gpt2", "--bias lora_only"),
        ("decoders/llama-llama3", "--bias none"),
        ("decoders/gemma3-linear", "--bias none"),
    ] {
        let name = base.rsplit('/').next().unwrap();
        lab.run(&format!(
            "train --model %{base}.gguf {rows} {more} --precision f32 --output-dir @{name}"
        ))
        .ok();
        let loss = |model: &str| {
            let line = format!(
                "eval {model} --data-file @ids.jsonl --task causal_lm --json --precision f32"
            );
            lab.run(&line).ok().json()["metrics"]["loss"]
                .as_f64()
                .unwrap()
        };
        let adapted = loss(&format!("--model %{base}.gguf --adapter @{name}"));
        let export =
            format!("export --model %{base}.gguf --adapter @{name} --to gguf --json --verify");
        for (out, most) in [("f32", 1e-5), ("f16", 1e-3), ("auto", 0.05)] {
            let line = format!("{export} --outtype {out} --output-file @{name}-{out}.gguf");
            let written = lab.run(&line).ok().json();
            assert!(
                written["changed"].as_u64().unwrap() > 4,
                "{base} {out}: {written}"
            );
            let found = loss(&format!("--model @{name}-{out}.gguf"));
            assert!(
                (found - adapted).abs() <= most,
                "{base} {out}: {found}, not {adapted}"
            );
        }
        // Keys stay, but for the one that says the type.
        let keys = |path: &Path| {
            let gguf = Gguf::open(path).unwrap();
            let kept = gguf.metadata().iter();
            let kept = kept.filter(|(key, _)| *key != "general.file_type");
            let shown = |value: &gguf::Value| match value {
                gguf::Value::List(list) => format!("{:?} {}", list.kind, list.len),
                other => format!("{other:?}"),
            };
            kept.map(|(key, value)| format!("{key} {}", shown(value)))
                .collect::<Vec<_>>()
        };
        let written = lab.path(&format!("{name}-f32.gguf"));
        assert_eq!(
            keys(Path::new(&file(&format!("{base}.gguf")))),
            keys(&written)
        );
    }
    let refused =
        "export --model %gpt2.gguf --adapter @gpt2 --to gguf --outtype f16 --verify --max-kl 0";
    let run = lab.run(&format!("{refused} --output-file @refused.gguf"));
    run.fails(1, &["the written model differs", "--max-kl"]);
    assert!(!lab.path("refused.gguf").exists());
    // Parts of a fused layer are a whole one in llama.cpp's form.
    let rows = "--train-file @ids.jsonl --task causal_lm --max-steps 2 --max-length 32 --r 4";
    lab.run(&format!(
        "train --model %gpt2.gguf {rows} --target-modules c_attn.q c_attn.v --output-dir @parts"
    ))
    .ok();
    lab.run("export --model %gpt2.gguf --adapter @parts --output-file @parts.gguf")
        .ok();
    let parts = Gguf::open(&lab.path("parts.gguf")).unwrap();
    let shapes: Vec<_> = parts.tensors()[..2]
        .iter()
        .map(|t| t.shape.clone())
        .collect();
    assert_eq!(shapes, [[8, 32], [96, 8]]);
    // A table that was both ends is two.
    lab.run(&format!(
        "train --model %gpt2.gguf {rows} --target-modules wte --output-dir @table"
    ))
    .ok();
    for to in ["gguf", "gguf-adapter"] {
        lab.run(&format!(
            "export --model %gpt2.gguf --adapter @table --to {to} --output-file @table.gguf"
        ))
        .fails(1, &["table"]);
    }
    let line = "export --model %gpt2.gguf --adapter @gpt2 --output-file @adapter.gguf";
    lab.run(line)
        .fails(1, &["transformer.h.0.attn.c_attn.bias", "--to gguf"]);
}

/// Names, shapes, alpha and order of rows are those of llama.cpp's own script.
#[test]
fn an_adapter_by_itself_has_the_form_of_llama_cpp() {
    let lab = Lab::new();
    let base = "decoders/llama-llama3.gguf";
    lab.ids();
    let rows = "--train-file @ids.jsonl --task causal_lm --max-steps 2 --max-length 32 --r 4 --use-rslora --rank-pattern v_proj=8 --target-modules q_proj v_proj down_proj";
    lab.run(&format!("train --model %{base} {rows} --output-dir @run"))
        .ok();
    let export = format!("export --model %{base} --adapter @run");
    lab.run(&format!("{export} --output-file @a.gguf")).ok();
    let gguf = Gguf::open(&lab.path("a.gguf")).unwrap();
    assert_eq!(gguf.text("general.type").unwrap(), Some("adapter"));
    assert_eq!(gguf.text("adapter.type").unwrap(), Some("lora"));
    assert_eq!(gguf.text("general.architecture").unwrap(), Some("llama"));
    let alpha = gguf.float("adapter.lora.alpha").unwrap().unwrap();
    let config = read(&lab.path("run/adapter/adapter_config.json"));
    let heads = Gguf::open(Path::new(&file(base))).unwrap();
    let heads = heads
        .unsigned("llama.attention.head_count")
        .unwrap()
        .unwrap() as usize;
    let peft =
        lowrank_formats::Checkpoint::open_file(&lab.path("run/adapter/adapter_model.safetensors"))
            .unwrap();
    for (tensor, module, heads) in [
        ("attn_q", "self_attn.q_proj", heads),
        ("attn_v", "self_attn.v_proj", 0),
        ("ffn_down", "mlp.down_proj", 0),
    ] {
        let of = |end: &str| {
            let name = format!("blk.0.{tensor}.weight.lora_{end}");
            let found = gguf
                .tensors()
                .iter()
                .find(|tensor| tensor.name == name)
                .unwrap();
            let bytes = gguf.bytes_of(found).unwrap();
            let values = bytes
                .as_chunks::<4>()
                .0
                .iter()
                .map(|b| f32::from_le_bytes(*b));
            (found.shape.clone(), values.collect::<Vec<f32>>())
        };
        let key = |end: &str| format!("base_model.model.model.layers.0.{module}.lora_{end}.weight");
        let [(a_shape, a), (b_shape, b)] = ["a", "b"].map(of);
        assert_eq!(a, peft.read_f32_vec(&key("A")).unwrap(), "{tensor}");
        let wanted = peft.read_f32_vec(&key("B")).unwrap();
        let (rank, out) = (a_shape[0], b_shape[0]);
        assert_eq!(rank, if tensor == "attn_v" { 8 } else { 4 });
        // llama.cpp multiplies with alpha / r.
        let lora_alpha = config["lora_alpha"].as_f64().unwrap();
        let factor = lora_alpha / (rank as f64).sqrt() / (alpha / rank as f64);
        for row in 0..out {
            let place = match heads {
                0 => row,
                heads => {
                    let width = out / heads;
                    let (head, within) = (row / width, row % width);
                    head * width + 2 * (within % (width / 2)) + within / (width / 2)
                }
            };
            for r in 0..rank {
                let (found, wanted) = (b[place * rank + r], wanted[row * rank + r]);
                let error = (f64::from(found) - factor * f64::from(wanted)).abs();
                assert!(
                    error <= 1e-6 * f64::from(wanted.abs()),
                    "{tensor} {row} {r}"
                );
            }
        }
    }
    lab.run(&format!("{export} --outtype q8_0 --output-file @b.gguf"))
        .fails(2, &["the factors of an adapter", "f16"]);
    lab.run(&format!("{export} --verify --output-file @b.gguf"))
        .fails(2, &["verify"]);
}

#[test]
fn blocks_are_refused_where_they_cannot_be() {
    let lab = Lab::new();
    lab.run("train --model %gpt2.gguf --full --base-format q8_0 --train-file @texts.jsonl --task causal_lm --output-dir @full")
        .fails(2, &["base_format", "q8_0, which is for frozen weights"]);
    lab.run("profile --model %bert-nf4 --base-format stored")
        .fails(
            2,
            &[
                "`--base-format stored` keeps the blocks of a GGUF file",
                "q8_0",
            ],
        );
    lab.run(
        "train --model %gpt2.gguf --base-format q3_9 --train-file @texts.jsonl --output-dir @x",
    )
    .fails(2, &["stored"]);
}

#[test]
fn inspect_lists_types_and_bits() {
    let lab = Lab::new();
    let found = lab.run("inspect %gpt2.gguf --tensors").ok().stdout;
    for word in [
        "gpt2",
        "Q4_K",
        "Q6_K",
        "MXFP4",
        "bits a parameter",
        "transformer.h.0.attn.c_attn.weight",
    ] {
        assert!(found.contains(word), "{word}: {found}");
    }
    let json = lab.run("inspect %gpt2.gguf --json").ok().json();
    assert!(json["weights"]["bits_per_parameter"].as_f64().unwrap() > 4.0);
    assert_eq!(json["weights"]["types"]["Q3_K"]["tensors"], 1);
}

#[test]
fn a_directory_in_nf4_is_a_model() {
    let lab = Lab::new();
    let rows: String = (0..12)
        .map(|i| {
            format!(
                "{}\n",
                json!({ "input_ids": [2, 5 + i, 9, 3], "label": if i % 2 == 0 { "no" } else { "yes" } })
            )
        })
        .collect();
    fs::write(lab.path("ids.jsonl"), rows).unwrap();
    let found = lab.run("inspect %bert-nf4").ok().stdout;
    assert!(
        found.contains("NF4") && found.contains("bits a parameter"),
        "{found}"
    );
    lab.run("train --model %bert-nf4 --train-file @ids.jsonl --num-train-epochs 1 --per-device-batch-size 4 --output-dir @run")
        .ok();
    lab.run("merge --model %bert-nf4 --adapter @run --output-dir @merged --verify")
        .ok();
    let merged = read(&lab.path("merged/config.json"));
    assert_eq!(merged.get("quantization_config"), None);
    let predicted = |words: &str| {
        let words = format!("predict {words} --data-file @ids.jsonl");
        lab.run(&words).ok().stdout.lines().count()
    };
    assert_eq!(predicted("--model @merged"), 12);
    assert_eq!(predicted("--model %bert-nf4 --adapter @run"), 12);
}

#[test]
fn a_converted_file_is_a_model_like_any_other() {
    let lab = Lab::new();
    lab.run("convert --model %gpt2.gguf --dtype f32 --output-dir @plain")
        .ok();
    let config = read(&lab.path("plain/config.json"));
    assert_eq!(
        (&config["model_type"], &config["torch_dtype"]),
        (&json!("gpt2"), &json!("float32"))
    );
    let of = |model: &str| {
        let words = format!("generate --model {model} --prompt the --max-new-tokens 6 --json");
        let said = lab.run(&words).ok().json().to_string();
        said.split("\"text\"").nth(1).map(str::to_owned)
    };
    assert_eq!(of("%gpt2.gguf"), of("@plain"));
    let again = lab.run("convert --model %gpt2.gguf --output-dir @plain");
    again.fails(2, &["is not empty"]);
    lab.run("convert --model %gpt2.gguf --output-dir @plain --overwrite")
        .ok();
    assert_eq!(
        read(&lab.path("plain/config.json"))["torch_dtype"],
        "bfloat16"
    );
}

#[test]
fn a_directory_of_another_family_is_inspected_and_converted() {
    let lab = Lab::new();
    let found = lab.run("inspect %packed/mxfp4 --tensors").ok().stdout;
    for words in [
        "MXFP4",
        "model.layers.0.mlp.experts.gate_up_proj  ",
        "[3, 64, 10]",
        "6.12 bits a parameter",
        "not a model that can be run here",
        "gpt_oss",
    ] {
        assert!(found.contains(words), "`{words}` is missing in:\n{found}");
    }
    lab.run("convert --model %packed/mxfp4 --output-dir @plain")
        .ok();
    let config = read(&lab.path("plain/config.json"));
    assert_eq!(config["quantization_config"], Value::Null);
    let open = |path: &Path| lowrank_formats::Checkpoint::open_model(path).expect("it opens");
    let (packed, plain) = (
        open(Path::new(&file("packed/mxfp4"))),
        open(&lab.path("plain")),
    );
    for info in packed.infos().filter(|info| info.packed.is_some()) {
        let values = plain.read_f32_vec(&info.name).expect("it is there");
        assert_eq!(plain.info(&info.name).map(|i| &i.shape), Some(&info.shape));
        // bf16 holds what transformers holds in bf16.
        assert_eq!(values, packed.read_f32_vec(&info.name).expect("values"));
    }
}

#[test]
fn files_that_cannot_be_models_are_refused_in_a_sentence() {
    let lab = Lab::new();
    let bytes = fs::read(file("gpt2.gguf")).unwrap();
    fs::write(lab.path("cut.gguf"), &bytes[..bytes.len() / 2]).unwrap();
    let cut = "the file may be cut off";
    lab.run("inspect @cut.gguf").fails(1, &["cannot read", cut]);
    let at = bytes
        .windows(12)
        .position(|part| part == b"architecture")
        .unwrap()
        + 12
        + 4
        + 8;
    let mut named = bytes.clone();
    named[at..at + 4].copy_from_slice(b"gptz");
    fs::write(lab.path("named.gguf"), &named).unwrap();
    lab.run("predict --model @named.gguf --text a")
        .fails(1, &["its architecture is `gptz`", "did you mean `gpt2`?"]);
    let folder = "generate --model @ --prompt a";
    lab.run(folder)
        .fails(1, &["holds no `config.json`", "cut.gguf"]);
    let listed = lab.run("inspect @named.gguf").ok().stdout;
    assert!(
        listed.contains("not a model that can be run here"),
        "{listed}"
    );
}
