"""The quality tables, declared: which recipes are trained, and what is measured of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from likeness_client.errors import InputError

from likeness_export.quality.kinds import Incomplete, PairSets, Ranking, Table, Variant, Views

_V2 = "weights/mobilenet_v2_1.0_224"
BACKBONES: dict[str, dict[str, str | int]] = {
    "lite": {"encoder": "efficientnet_lite"},
    "v2": {"encoder": "vision", "source": _V2},
    "v1": {"encoder": "vision", "source": "weights/mobilenet_v1_1.0_224"},
    "v1-small": {"encoder": "vision", "source": "weights/mobilenet_v1_0.25_128", "image_px": 128},
}
"""Pretrained image networks: name -> the tower that a recipe would have."""

_GALLERY_81 = Ranking(name="T1 photo to catalogue", labels=("group", "coarse_label"), gallery=("catalog",))
_KIND_COLOUR_GENDER = "fine_label+attributes.baseColour+attributes.gender"
_FASHION = Ranking(name="T3", labels=("fine_label", _KIND_COLOUR_GENDER))
_ATTENTION, _CONCATENATION = 'fusion={kind="attention", score="mlp"}', 'fusion={kind="concatenation"}'
_FUSIONS = {
    "attention": (_ATTENTION, "attention, scored by a small network"),
    "attention-linear": ('fusion={kind="attention"}', "attention, scored linearly"),
    "concatenation": (_CONCATENATION, "early fusion: the vectors joined and projected"),
    "late": ('fusion={kind="late"}', "late fusion: similarities per tower, learned weights"),
}
_MOBILENET_V2 = f'towers.image={{encoder="vision",source="{_V2}"}}'
_FROZEN = ("towers.look.freeze=true", "training.head_epochs=0", "training.epochs=15")
_UNTRAINED = ("text", "masked text", *BACKBONES, "text+v2", "masked text+v2", "text+lite", "masked text+lite")
_FLIPKART = Ranking(name="T5", labels=("fine_label", "extra.mid_label"), gallery=("train", "val"))
_FLIPKART_MASKED = (
    'data.masked=["fine_label", "extra.mid_label"]',
    'towers.attributes.keys=["Color", "Material", "Ideal For", "Occasion", "Pattern", "Dial Shape"]',
)
_LUMA_MASKED = 'data.masked=["fine_label", "coarse_label", "attributes.color"]'
_LUMA = Ranking(name="T7", labels=("group",), gallery=("train", "val"))
_RENDERED = Ranking(name="same product", labels=("group",))
_RENDERED_NOTES = (
    "`likeness render` makes the catalogue. Invented data shows that a modality works, not what it is worth.",
)
# Variants of the recipe of that name.
_grocery, _fashion, _flipkart, _luma, _matching = (
    partial(Variant, recipe=name) for name in ("grocery", "fashion", "flipkart", "luma", "matching")
)
_WDC = ("wdc-cameras", "wdc-computers", "wdc-shoes", "wdc-watches")


def _sets(*names: str) -> str:
    return f"data.only={{coarse_label={list(names)}}}"


TABLES = (
    Table(
        name="grocery",
        title="Groceries: photos from a smartphone against the shop's catalogue",
        products="grocery/products.jsonl",
        variants=(
            _grocery(name="finetuned", what="the recipe: the image network is fine-tuned", joined=True),
            _grocery(name="frozen", overrides=("towers.image.freeze=true",), what="only the projection is trained"),
        ),
        measures=(
            _GALLERY_81,
            Ranking(name="T2 photo to photos", labels=("fine_label", "coarse_label"), gallery=("train",)),
        ),
        baselines=("lite", "v2", "v1", "v1-small"),
        sheet=_GALLERY_81,
        notes=("For orientation: fine-tuned classifiers of these photos are published with 86.0 and 92.0 % accuracy.",),
    ),
    Table(
        name="fashion",
        title="Fashion: one product space of text, photo and attributes",
        products="fashion/products.jsonl",
        variants=(
            _fashion(name="finetuned", what="the recipe: concatenation; the small photo network is fine-tuned"),
            *(
                _fashion(name=name, overrides=(fusion, *_FROZEN), what=f"encoders frozen; {what}")
                for name, (fusion, what) in _FUSIONS.items()
            ),
            *(
                _fashion(name=name, overrides=(key, _ATTENTION, *_FROZEN), what=what)
                for name, key, what in (
                    ("decoupled", "training.loss=decoupled", "`attention` with the decoupled loss"),
                    ("hard-negatives", "training.hard_negatives=0.5", "`attention`, half of a batch drawn to be hard"),
                    ("no-co-learning", "training.co_learning=0", "`attention`, modalities contrasted only as products"),
                    ("no-proxies", "training.proxies=0", "`attention`, formula 4.1 alone"),
                )
            ),
            _fashion(
                name="mobilenet-v2",
                overrides=(_MOBILENET_V2, _CONCATENATION, *_FROZEN),
                what="`concatenation`; MobileNet V2 for EfficientNet-Lite 0",
            ),
            _fashion(
                name="unmasked",
                overrides=("data.masked=[]", _ATTENTION, *_FROZEN),
                what="`attention`; titles as they are, which nearly state the labels",
            ),
        ),
        measures=(
            _FASHION,
            Incomplete(name="T3, incomplete queries", labels=_FASHION.labels),
            Ranking(name="T4", labels=("group",)),
        ),
        baselines=_UNTRAINED,
        masked=("fine_label", "attributes.baseColour", "attributes.gender"),
        sheet=Ranking(name="sheet", labels=(_KIND_COLOUR_GENDER,)),
    ),
    Table(
        name="flipkart",
        title="Flipkart: categories and families of a mixed shop",
        products="flipkart/products.jsonl",
        variants=(
            _flipkart(name="recipe", what="the recipe as it is; titles often state the category"),
            _flipkart(
                name="masked",
                overrides=_FLIPKART_MASKED,
                what="titles without the words of the categories, attributes without `Type`, which nearly is one",
            ),
            *(
                _flipkart(name=f"masked-{name}", overrides=(fusion, *_FLIPKART_MASKED), what=what)
                for name, (fusion, what) in _FUSIONS.items()
                if name != "attention-linear"  # which the recipe has
            ),
            _flipkart(
                name="masked-mobilenet-v2",
                overrides=(_MOBILENET_V2, *_FLIPKART_MASKED),
                what="`masked`; MobileNet V2 for EfficientNet-Lite 0",
            ),
            _flipkart(
                name="masked-word2vec",
                overrides=(*_FLIPKART_MASKED, 'towers.text={encoder="word_vectors"}'),
                what="`masked`; Word2Vec, learned from the training titles, for the transformer",
            ),
            _flipkart(
                name="masked-terms",
                overrides=(*_FLIPKART_MASKED, "towers.text="),
                what="`masked`; TF-IDF is the only tower of text",
            ),
            _flipkart(
                name="masked-transformer",
                overrides=(*_FLIPKART_MASKED, "towers.terms="),
                what="`masked`; the transformer is the only tower of text",
            ),
        ),
        measures=(
            _FLIPKART,
            Incomplete(name="T5, incomplete queries", labels=("fine_label",), gallery=_FLIPKART.gallery),
            Ranking(name="T6", labels=("group",), gallery=("train", "val")),
        ),
        baselines=_UNTRAINED,
        masked=("fine_label", "extra.mid_label"),
        sheet=_FLIPKART,
        notes_of_measured=("146 to 208 queries: differences below about 0.05 are noise.",),
    ),
    Table(
        name="luma",
        title="Luma: families, categories, colours and views of a small shop",
        products="luma/products.jsonl",
        variants=(
            _luma(name="family", what="the recipe as it is: alike are families and categories"),
            _luma(
                name="family-masked",
                overrides=(_LUMA_MASKED,),
                what="titles without the words of categories and colours",
            ),
            *(
                _luma(name=f"family-masked-{name}", overrides=(fusion, _LUMA_MASKED), what=f"masked; {what}")
                for name, (fusion, what) in _FUSIONS.items()
                if name != "attention-linear"  # which the recipe has
            ),
            _luma(
                name="family-masked-mobilenet-v2",
                overrides=(_LUMA_MASKED, _MOBILENET_V2),
                what="`family-masked`; MobileNet V2 for EfficientNet-Lite 0",
            ),
            _luma(
                name="family-masked-photos",
                overrides=(_LUMA_MASKED, "towers.image.max_photos=4", "towers.look.max_photos=4"),
                what="`family-masked`; of each product up to four photos instead of the first",
            ),
            _luma(
                name="family-masked-parts",
                overrides=(
                    _LUMA_MASKED,
                    f'towers.image={{encoder="local_features",source="{_V2}"}}',
                    "training.head_epochs=0",
                ),
                what="`family-masked-mobilenet-v2`; local features: parts of the frozen network's maps are learned",
            ),
            _luma(
                name="colour",
                overrides=('data.labels=["attributes.color"]',),
                what="alike is what has the same colour, whatever it is",
            ),
        ),
        measures=(
            _LUMA,
            Ranking(name="T8", labels=("fine_label+coarse_label",), gallery=("train", "val")),
            Ranking(name="T9", labels=("attributes.color",), gallery=("train", "val")),
            Views(name="T10 last view to main view"),
        ),
        baselines=_UNTRAINED,
        masked=("fine_label", "coarse_label", "attributes.color"),
        sheet=_LUMA,
        notes=("T10 asks with products of training too.",),
        notes_of_measured=("42 to 49 queries: differences below about 0.10 are noise.",),
    ),
    Table(
        name="matching",
        title="Matching: the same product in two shops, by text",
        products="em-text/products.jsonl",
        variants=(
            *(
                _matching(name=name, overrides=(_sets(name),), what=f"the recipe on {name} alone", joined=True)
                for name in ("abt-buy", "walmart-amazon")
            ),
            _matching(
                name="amazon-google",
                overrides=(_sets("amazon-google"), "training.epochs=12"),
                what="the recipe on amazon-google alone, 12 epochs for 6",
                joined=True,
            ),
            _matching(
                name="wdc",
                overrides=(_sets(*_WDC), "training.epochs=2"),
                what="one network for four kinds of offers; three times as many pairs, so 2 epochs for 6",
                joined=True,
            ),
            _matching(
                name="walmart-amazon-model",
                overrides=(
                    _sets("walmart-amazon"),
                    *("towers.text=", "towers.terms=", "fusion="),
                    'towers.model={encoder="hashed",keys=["modelno"]}',
                ),
                what="model numbers alone, hashed; products without one have no embedding",
            ),
            Variant(
                name="walmart-amazon-and-model",
                joins=("walmart-amazon", "walmart-amazon-model"),
                what="text and model numbers, trained apart and joined",
                joined=True,
            ),
            _matching(
                name="abt-buy-transformer",
                overrides=(_sets("abt-buy"), "towers.terms=", "fusion="),
                what="without the TF-IDF tower",
            ),
        ),
        measures=(PairSets(name="T11", search="T12", pairs="em-text/pairs.csv"),),
        baselines=("text",),
        notes=(
            "A fifth of a set's train pairs is kept from training, for each seed another one, and the decision (a "
            "probability by logistic regression, and a threshold) is learned from those. Joined seeds have together "
            "learned from all pairs, and their decision from the fifths of all, each scored by the seed that has not "
            "seen it; untrained methods learn it from all train pairs. "
            "`F1 best` is what the best threshold for the measured pairs would give: a ceiling, not a result.",
            "`among neighbours`: the decision also knows how much each product is like its nearest neighbours in the "
            "other shop, which needs both catalogues. Published figures judge every pair by itself: compare those with "
            "the other lines.",
            "`either`, `both`, `neither`: how many products of a pair occur in train pairs; given where there are at "
            "least 30 such pairs.",
            "Published F1 on the test pairs of abt-buy, amazon-google, walmart-amazon: "
            "DeepMatcher 62.8, 69.3, 66.9; Ditto 89.3, 75.6, 86.8; supervised contrastive "
            "RoBERTa-base 94.3, 79.3 (the first two).",
        ),
        notes_of_measured=(
            "Of neither product there are 33 pairs of abt-buy, 62 of amazon-google, 133 of walmart-amazon and 32 of "
            "wdc-computers.",
            "Measured are the val pairs; published figures are of the test pairs.",
        ),
    ),
    Table(
        name="clips",
        title="Clips: a rendered catalogue, some of whose listings are filmed",
        products="products_with_clips.jsonl",
        variants=(
            Variant(name="c3d", recipe="demo_video", what="the recipe: C3D beside a small network for photos"),
            Variant(
                name="cnn-lstm",
                recipe="demo_video",
                overrides=("towers.video.encoder=cnn_lstm",),
                what="a network for frames and an LSTM over them, for C3D",
            ),
        ),
        measures=(_RENDERED,),
        sheet=_RENDERED,
        notes=_RENDERED_NOTES,
        rendered=True,
    ),
    Table(
        name="shoppers",
        title="Shoppers: a rendered catalogue and the log of its invented shoppers",
        products="products_with_interactions.jsonl",
        variants=(
            Variant(name="als", recipe="demo_interactions", what="the recipe: collaborative filtering beside text"),
            Variant(
                name="untaught",
                recipe="demo_interactions",
                overrides=("data.labels=", "dimension=384", "fusion={kind='late'}"),
                what="without labels, so that nothing is learned: encoders as they come, factors as they are fitted",
            ),
        ),
        measures=(_RENDERED,),
        baselines=("text",),
        sheet=_RENDERED,
        notes=_RENDERED_NOTES,
        rendered=True,
    ),
)
ALL = "all"


def tables_named(names: Sequence[str]) -> tuple[Table, ...]:
    """Return tables by name, ``all`` for all of real products.

    Raises:
        InputError: there is no such table; names those that there are.
    """
    known = {table.name: table for table in TABLES}
    if unknown := [name for name in names if name not in known and name != ALL]:
        raise InputError(f"there is no table {', '.join(unknown)}; there are: {', '.join(known)}, {ALL}")
    real = [table.name for table in TABLES if not table.rendered]
    chosen = [one for name in names for one in (real if name == ALL else [name])]
    return tuple(known[name] for name in dict.fromkeys(chosen))


def tables_with(variants: Sequence[str], tables: Sequence[Table]) -> tuple[Table, ...]:
    """Return the tables that have one of some variants; without names, all of them.

    Raises:
        InputError: no table has one of the variants; names those that there are.
    """
    known = {variant.name for table in tables for variant in table.variants}
    if unknown := [name for name in variants if name not in known]:
        where = ", ".join(table.name for table in tables)
        raise InputError(f"{where}: there is no variant {', '.join(unknown)}; there are: {', '.join(sorted(known))}")
    return tuple(table for table in tables if not variants or {one.name for one in table.variants} & set(variants))
