//! The program as users hold it: every test runs the real binary on tiny models that were made by
//! transformers.
#![expect(clippy::too_many_lines, reason = "a test is one story, told in order")]

mod bad_input;
mod chats;
mod config_file;
mod data_files;
mod faults;
mod generated_text;
mod generation;
mod heads;
mod interrupted;
mod labels;
mod language_model;
mod memory;
mod numerics;
mod outputs;
mod parts;
mod places;
mod presets;
mod quantised;
mod real_models;
mod settings_obeyed;
mod snapshots;
mod support;
mod tokenizers;
mod tokens;
mod what_a_run_knows;
mod whole_way;
