//! Every byte against the reference implementations: see `fixtures/golden/quant/make.py`.
#![expect(clippy::unwrap_used, reason = "a golden file that does not read fails its test")]

use attar_checkpoint::Dtype;
use attar_quant::{
    ENCODINGS, Encoding, FolderEncoding, GridEncoding as _, Holds, IntEncoding, ScaleDtype, ScaledEncoding,
    Transposed, Words, encoding,
};
use ndarray::Array2;
use safetensors::SafeTensors;

const IMPORTANCES: [&str; 3] = ["none", "wide", "holes"];

/// The formats for which llama.cpp does not look at an importance; ours do, so only their bytes without one are compared. Where
/// numbers are below the normal ones its casts to integers are undefined: for these formats they are 0 instead.
const PLAIN_THERE: [&str; 6] = ["tq1_0", "tq2_0", "mxfp4", "nvfp4", "q1_0", "q2_0"];

fn golden(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/../fixtures/golden/quant/{name}.safetensors", env!("CARGO_MANIFEST_DIR")))
        .unwrap()
}

fn floats(file: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    file.tensor(name)
        .unwrap()
        .data()
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect()
}

fn matrix(file: &SafeTensors<'_>, name: &str) -> Array2<f32> {
    let shape = file.tensor(name).unwrap().shape().to_vec();
    Array2::from_shape_vec((shape[0], shape[1]), floats(file, name)).unwrap()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// The first difference, so that a failure says which block of which row.
fn assert_same(got: &[u8], want: &[u8], rows: usize, row_blocks: usize, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    let block = want.len() / (rows * row_blocks);
    let different: Vec<String> = got
        .chunks(block)
        .zip(want.chunks(block))
        .enumerate()
        .filter(|(_, (got, want))| got != want)
        .map(|(i, (got, want))| {
            format!("row {} block {}:\n  got  {got:?}\n  want {want:?}", i / row_blocks, i % row_blocks)
        })
        .collect();
    let all = rows * row_blocks;
    assert!(
        different.is_empty(),
        "{what}: {} of {all} blocks differ, first {}",
        different.len(),
        different[0]
    );
}

/// Their golden vectors are a file of their own: see `codebooks.rs`.
fn has_codebook(encoding: &dyn Encoding) -> bool {
    encoding.grid().is_some_and(|grid| grid.codebook().is_some())
}

#[test]
fn blocks_are_those_of_llama_quantize_to_the_byte_with_and_without_importance() {
    let bytes = golden("ggml");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let x = matrix(&file, "x");
    let normal = x.mapv(|x| if x.is_subnormal() { 0.0 } else { x });
    for encoding in ENCODINGS.iter().filter(|encoding| !has_codebook(**encoding)) {
        let name = encoding.name();
        for importance in IMPORTANCES {
            let Ok(want) = file.tensor(&format!("{name}.{importance}")) else {
                let weighted = importance != "none";
                let plain = encoding.grid().is_none() || weighted && PLAIN_THERE.contains(&&*name);
                assert!(plain, "no golden bytes for {name}.{importance}");
                continue;
            };
            let weights = file
                .tensor(&format!("importance.{importance}"))
                .is_ok()
                .then(|| floats(&file, &format!("importance.{importance}")));
            let x = if PLAIN_THERE.contains(&&*name) { &normal } else { &x };
            let got = encoding.quantize(x.view(), weights.as_deref());
            assert_same(
                &got,
                want.data(),
                x.nrows(),
                x.ncols() / encoding.block_len(),
                &format!("{name}.{importance}"),
            );
        }
    }
}

#[test]
fn any_bytes_decode_to_the_bits_that_the_reference_computes() {
    let bytes = golden("ggml");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    for encoding in ENCODINGS.iter().filter(|e| e.grid().is_some() && !has_codebook(**e)) {
        let name = encoding.name();
        let random = file.tensor(&format!("{name}.random")).unwrap();
        let want = floats(&file, &format!("{name}.random.values"));
        let got = encoding.unpack(random.data(), 1, want.len()).unwrap();
        assert_eq!(bits(got.as_slice().unwrap()), bits(&want), "{name}");
    }
}

#[test]
fn grouped_integers_lie_and_decode_as_compressed_tensors_has_them() {
    let bytes = golden("integers");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    for bits_per_code in 2..=8 {
        for integer in [IntEncoding::symmetric(bits_per_code, 32), IntEncoding::asymmetric(bits_per_code, 32)]
        {
            let integer = integer.with_scale(ScaleDtype::F32);
            let name = integer.name();
            let part =
                |part: &str| file.tensor(&format!("{name}.{part}")).map(|t| t.data()).unwrap_or_default();
            let want = matrix(&file, &format!("{name}.values"));
            let (rows, cols) = want.dim();
            let joined = ["packed", "scale", "zero_point"].map(part).concat();
            let got = integer.unpack(&joined, rows, cols).unwrap();
            assert_eq!(bits(got.as_slice().unwrap()), bits(want.as_slice().unwrap()), "{name}: values");

            let fit = integer.grid().unwrap().unpack_codes(&joined, rows, cols).unwrap();
            let packed = integer.grid().unwrap().pack(&fit.grid, fit.codes.view());
            for (own, bytes) in integer.split(&packed, rows, cols).unwrap() {
                let ending = own.ending.strip_prefix(".weight_").unwrap();
                if let Holds::Said(said) = own.holds {
                    assert_eq!((ending, own.dtype), ("shape", Dtype::I64), "{name}");
                    assert_eq!(
                        said,
                        [rows.to_le_bytes(), cols.to_le_bytes()].concat(),
                        "{name}: weight_shape"
                    );
                    continue;
                }
                assert_eq!(bytes, part(ending), "{name}: weight_{ending}");
                assert_eq!(own.shape, file.tensor(&format!("{name}.{ending}")).unwrap().shape(), "{name}");
            }
        }
    }
}

/// See `fixtures/golden/quant/scaled.py`.
#[test]
fn eight_and_four_bit_numbers_lie_and_decode_as_compressed_tensors_has_them() {
    let bytes = golden("scaled");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    for scaled in ScaledEncoding::all(ScaleDtype::F32) {
        let name = scaled.name();
        let part = |part: &str| file.tensor(&format!("{name}.{part}")).map(|t| t.data()).unwrap_or_default();
        let (w, want) = (matrix(&file, &format!("{name}.w")), matrix(&file, &format!("{name}.values")));
        let (rows, cols) = w.dim();
        let joined = ["weight", "weight_packed", "weight_scale", "weight_global_scale"].map(part).concat();
        let fit = scaled.unpack_codes(&joined, rows, cols).unwrap();
        let same = bits(fit.decoded().as_slice().unwrap()) == bits(want.as_slice().unwrap());
        assert!(same, "{name}: values");
        assert!(scaled.pack(&fit.grid, fit.codes.view()) == joined, "{name}: packed again");

        // On the package's own scales: codes as it rounds them, zeros that differ in sign aside.
        let rounded = fit.grid.decode_all(fit.grid.round(w.view()).view());
        assert!(rounded == want, "{name}: rounded");
        // And on those searched for here no more is lost.
        let lost = |decoded: &Array2<f32>| (decoded - &w).mapv(|x| x * x).sum();
        let searched = scaled.search(w.view(), None).decoded();
        assert!(lost(&searched) <= lost(&want), "{name}: {} for {}", lost(&searched), lost(&want));
    }
}

#[test]
fn names_lead_back_to_their_encodings() {
    for listed in ENCODINGS {
        assert_eq!(encoding(&listed.name()).map(|e| e.name()), Some(listed.name()));
    }
    for name in ["w2-g16", "w4-g64", "w3-g128-asym", "w8-g32"] {
        assert_eq!(encoding(name).map(|e| e.name().into_owned()).as_deref(), Some(name));
    }
    for name in ["w1-g64", "w9-g64", "w4-g0", "w4-g64-sym", "w4g64", "q9_0", ""] {
        assert!(encoding(name).is_none(), "{name}");
    }
}

/// Names in the file: how the words lie, whether zeros are stored of symmetric ones, whether columns have an order of their own.
const TRANSPOSED: [(&str, Words, bool, bool); 6] = [
    ("gptq", Words::GptqV1, true, false),
    ("gptq-asym", Words::GptqV1, false, false),
    ("gptq_v2", Words::GptqV2, false, false),
    ("gptq_v2-ordered", Words::GptqV2, false, true),
    ("awq", Words::AwqGemm, false, false),
    ("awq-sym", Words::AwqGemm, true, false),
];

#[test]
fn transposed_integers_lie_and_decode_as_gptqmodel_has_them() {
    let bytes = golden("transposed");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    for (format, words, symmetric, ordered) in TRANSPOSED {
        for bits_per_code in [2, 3, 4, 8].into_iter().filter(|&bits| bits == 4 || words != Words::AwqGemm) {
            let name = format!("{format}.{bits_per_code}");
            let tensor = |part: &str| file.tensor(&format!("{name}.{part}")).unwrap();
            let integers = if symmetric {
                IntEncoding::symmetric(bits_per_code, 32)
            } else {
                IntEncoding::asymmetric(bits_per_code, 32)
            };
            let encoding = Transposed::new(integers, words);
            let (rows, cols) = (64, 128);
            let parts = encoding.parts(rows, cols);
            let joined: Vec<u8> = parts
                .iter()
                .flat_map(|own| tensor(own.ending.trim_start_matches('.')).data().to_vec())
                .collect();
            let fit = encoding.unpack_codes(&joined, rows, cols).unwrap();
            assert_eq!(fit.codes.as_slice().unwrap(), tensor("codes").data(), "{name}: codes");

            let zeros = tensor("zeros").data().to_vec();
            let scales: Vec<f32> = tensor("scales")
                .data()
                .chunks_exact(2)
                .map(|bytes| half::f16::from_le_bytes(bytes.try_into().unwrap()).to_f32())
                .collect();
            let group =
                |col: usize| if ordered { usize::from(tensor("g_idx").data()[4 * col]) } else { col / 32 };
            let values = fit.decoded();
            for ((row, col), &value) in values.indexed_iter() {
                let (scale, zero) = (scales[group(col) * rows + row], f32::from(zeros[row * 4 + group(col)]));
                let want = scale * (f32::from(fit.codes[[row, col]]) - zero);
                assert_eq!(value.to_bits(), want.to_bits(), "{name}: row {row}, column {col}");
            }
            if ordered {
                continue; // not written
            }
            let packed = encoding.pack(&fit.grid, fit.codes.view());
            for (own, bytes) in encoding.split(&packed, rows, cols).unwrap() {
                let want = tensor(own.ending.trim_start_matches('.'));
                assert_eq!(bytes, want.data(), "{name}: {}", own.ending);
                assert_eq!(own.shape, want.shape(), "{name}: {}", own.ending);
            }
        }
    }
}
