//! GGUF files byte by byte, also such as no program would write.
#![allow(dead_code)] // Each test uses a part of it.

/// A file as tests write it.
#[derive(Clone)]
pub struct File {
    pub version: u32,
    pub tensors: u64,
    pub keys: u64,
    /// Keys, then tensors, as they stand in the file.
    pub header: Vec<u8>,
    pub data: Vec<u8>,
}

pub fn text(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

pub fn key(name: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [text(name), kind.to_le_bytes().to_vec(), value.to_vec()].concat()
}

pub fn tensor(name: &str, shape: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let mut bytes = text(name);
    bytes.extend((shape.len() as u32).to_le_bytes());
    shape.iter().for_each(|d| bytes.extend(d.to_le_bytes()));
    bytes.extend(kind.to_le_bytes());
    bytes.extend(offset.to_le_bytes());
    bytes
}

impl File {
    /// Two keys, a table of Q8_0 and a vector of f32 behind it.
    pub fn sound() -> File {
        let tokens = [
            8u32.to_le_bytes().to_vec(),
            2u64.to_le_bytes().to_vec(),
            text("a"),
            text("bc"),
        ];
        File::of(
            &[
                key("general.architecture", 8, &text("gpt2")),
                key("tokenizer.ggml.tokens", 9, &tokens.concat()),
            ],
            &[tensor("table", &[32, 2], 8, 0), tensor("norm", &[3], 0, 96)],
            108,
        )
    }

    pub fn of(keys: &[Vec<u8>], tensors: &[Vec<u8>], data: usize) -> File {
        File {
            version: 3,
            tensors: tensors.len() as u64,
            keys: keys.len() as u64,
            header: [keys.concat(), tensors.concat()].concat(),
            data: (0..data).map(|i| (i % 61) as u8).collect(),
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend(self.tensors.to_le_bytes());
        bytes.extend(self.keys.to_le_bytes());
        bytes.extend(&self.header);
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend(&self.data);
        bytes
    }
}
