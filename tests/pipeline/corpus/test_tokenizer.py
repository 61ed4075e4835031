"""Both tokenizers give back every text, and decode whatever ids they are given."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus.tokenizer import _PIECE_CHARACTERS, BpeTokenizer, ByteTokenizer, _pieces, decoded

TEXT = "def mean(values):\n    return sum(values) / n\n\n\nThe mean of values is their sum over n.\n"
BPE = BpeTokenizer.train([TEXT], vocab_size=300)
BOTH = pytest.mark.parametrize("tokenizer", [BPE, ByteTokenizer()], ids=["bpe", "bytes"])


@BOTH
@given(text=st.text() | st.text(alphabet="<|end|> \n\tä🙂"))
def test_decoding_the_encoding_gives_back_any_text(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@BOTH
@given(text=st.text())
def test_the_bytes_of_the_tokens_are_the_bytes_of_the_text(tokenizer, text):
    assert b"".join(tokenizer.token_bytes[i] for i in tokenizer.encode(text)) == text.encode()


@BOTH
@given(ids=st.lists(st.integers(-3, 70_000)))
def test_any_ids_decode_without_an_error(tokenizer, ids):
    assert isinstance(tokenizer.decode(ids), str)


@BOTH
@given(data=st.text(alphabet="aé🙂").map(str.encode) | st.binary(), wrong=st.lists(st.integers(-3, 70_000), max_size=2))
def test_decoding_bit_by_bit_is_decoding_at_once(tokenizer, data, wrong):
    byte = {bytes_: token for token, bytes_ in enumerate(tokenizer.token_bytes) if len(bytes_) == 1}
    ids = [*(byte[data[at : at + 1]] for at in range(len(data))), *wrong]
    assert "".join(decoded(tokenizer, ids)) == tokenizer.decode(ids)
    assert list(decoded(tokenizer, [byte[bytes([one])] for one in "é🙂".encode()])) == ["é", "🙂"]


@BOTH
@given(texts=st.lists(st.text(), max_size=7))
def test_encoding_many_texts_is_encoding_each(tokenizer, texts):
    assert [ids.tolist() for ids in tokenizer.encode_many(texts)] == [tokenizer.encode(text) for text in texts]


def test_a_long_text_encodes_the_same_in_pieces_as_in_one():
    text = TEXT * (2 * _PIECE_CHARACTERS // len(TEXT) + 7)
    assert len(_pieces(text)) > 1
    assert "".join(_pieces(text)) == text
    (ids,) = BPE.encode_many([text])
    assert ids.tolist() == BPE.encode(text)


def test_the_separator_stands_for_no_text_and_is_never_encoded():
    assert BPE.separator is not None
    assert BPE.token_bytes[BPE.separator] == b""
    assert BPE.separator not in BPE.encode("<|end|>")
    assert ByteTokenizer().separator is None


def test_training_twice_gives_the_same_file():
    assert BpeTokenizer.train([TEXT, TEXT[7:]], 290).to_files() == BpeTokenizer.train([TEXT, TEXT[7:]], 290).to_files()


def test_a_tokenizer_opens_from_its_own_file():
    opened = BpeTokenizer.from_json(BPE.to_files()["tokenizer.json"])
    assert opened.token_bytes == BPE.token_bytes
    assert opened.encode("the <|end|> mean") == BPE.encode("the <|end|> mean")
