//! The codebook types: their bytes, their searches and their nearest codewords.
#![expect(clippy::unwrap_used, reason = "a golden file that does not read fails its test")]

use attar_quant::{ENCODINGS, GridEncoding};
use ndarray::Array2;
use safetensors::SafeTensors;

fn golden(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/../fixtures/golden/quant/{name}.safetensors", env!("CARGO_MANIFEST_DIR")))
        .unwrap()
}

fn floats(file: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let bytes = file.tensor(name).unwrap().data();
    bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
}

fn codebook_encodings() -> impl Iterator<Item = &'static dyn GridEncoding> {
    ENCODINGS.iter().filter_map(|encoding| encoding.grid()).filter(|grid| grid.codebook().is_some())
}

#[test]
fn any_bytes_decode_to_the_bits_that_the_gguf_package_computes() {
    let bytes = golden("codebooks");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    for encoding in codebook_encodings() {
        let name = encoding.name();
        let random = file.tensor(&format!("{name}.random")).unwrap();
        let want = floats(&file, &format!("{name}.random.values"));
        let got = encoding.unpack(random.data(), 1, want.len()).unwrap();
        let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(got.as_slice().unwrap()), bits(&want), "{name}");
    }
}

/// Against llama.cpp on the same rows and importance: the weighted squared error, relative to each row's.
#[test]
fn searches_lose_less_than_the_reference() {
    let (inputs, bytes) = (golden("ggml"), golden("codebooks"));
    let inputs = SafeTensors::deserialize(&inputs).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let shape = inputs.tensor("x").unwrap().shape().to_vec();
    let x = Array2::from_shape_vec((shape[0], shape[1]), floats(&inputs, "x")).unwrap();
    for encoding in codebook_encodings() {
        let name = encoding.name();
        for key in ["none", "wide", "holes"] {
            let Ok(theirs) = file.tensor(&format!("{name}.{key}")) else { continue };
            let importance = (key != "none").then(|| floats(&inputs, &format!("importance.{key}")));
            let ours = encoding.quantize(x.view(), importance.as_deref());
            let loss = |bytes: &[u8]| {
                let decoded = encoding.unpack(bytes, shape[0], shape[1]).unwrap();
                relative_losses(&x, &decoded, importance.as_deref())
            };
            let (ours, theirs) = (loss(&ours), loss(theirs.data()));
            let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
            assert!(mean(&ours) < 0.97 * mean(&theirs), "{name}.{key}: {} of {}", mean(&ours), mean(&theirs));
        }
    }
}

/// Of each row with numbers that half precision can scale.
fn relative_losses(x: &Array2<f32>, decoded: &Array2<f32>, importance: Option<&[f32]>) -> Vec<f64> {
    let weight = |col: usize| importance.map_or(1.0, |importance| f64::from(importance[col]));
    let energy = |row: ndarray::ArrayView1<'_, f32>| {
        row.iter().enumerate().map(|(col, &x)| weight(col) * f64::from(x).powi(2)).sum::<f64>()
    };
    x.rows()
        .into_iter()
        .zip((decoded - x).rows())
        .filter(|(x, _)| x.iter().any(|x| x.abs() > 1e-3))
        .map(|(x, off)| energy(off) / energy(x))
        .collect()
}
