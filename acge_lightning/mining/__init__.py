"""Data mining: clean text piles, find what repeats or contradicts itself, and mine hard negatives. Pure functions over rows."""

from typing import TYPE_CHECKING

from acge_lightning.lazy import lazy_names

if TYPE_CHECKING:
    from acge_lightning.mining.cleaning import clean_text as clean_text
    from acge_lightning.mining.cleaning import clean_texts as clean_texts
    from acge_lightning.mining.consistency import Ranks as Ranks
    from acge_lightning.mining.consistency import inconsistent_pairs as inconsistent_pairs
    from acge_lightning.mining.consistency import positive_ranks as positive_ranks
    from acge_lightning.mining.decontaminate import LeakIndex as LeakIndex
    from acge_lightning.mining.decontaminate import leak_index as leak_index
    from acge_lightning.mining.decontaminate import leaks as leaks
    from acge_lightning.mining.deduplicate import near_duplicates as near_duplicates
    from acge_lightning.mining.filters import text_issues as text_issues
    from acge_lightning.mining.findings import Findings as Findings
    from acge_lightning.mining.hard_negatives import HardNegatives as HardNegatives
    from acge_lightning.mining.hard_negatives import choose_negatives as choose_negatives
    from acge_lightning.mining.judged_texts import JudgedTexts as JudgedTexts
    from acge_lightning.mining.judged_texts import combine_judgements as combine_judgements
    from acge_lightning.mining.label_noise import LabelConfidence as LabelConfidence
    from acge_lightning.mining.label_noise import doubtful_labels as doubtful_labels
    from acge_lightning.mining.label_noise import label_confidence as label_confidence
    from acge_lightning.mining.mined_folder import mined_rows as mined_rows
    from acge_lightning.mining.mined_folder import write_mined as write_mined
    from acge_lightning.mining.miner import mine as mine
    from acge_lightning.mining.neighbours import DenseNeighbours as DenseNeighbours
    from acge_lightning.mining.neighbours import LexicalNeighbours as LexicalNeighbours
    from acge_lightning.mining.normalise import duplicate_keys as duplicate_keys
    from acge_lightning.mining.normalise import row_keys as row_keys
    from acge_lightning.mining.normalise import text_keys as text_keys
    from acge_lightning.mining.opposite_labels import contradictions as contradictions
    from acge_lightning.mining.positives import headings_and_sections as headings_and_sections
    from acge_lightning.mining.positives import neighbouring_passages as neighbouring_passages
    from acge_lightning.mining.positives import titles_and_bodies as titles_and_bodies
    from acge_lightning.mining.rules import Reason as Reason
    from acge_lightning.mining.rules import Rules as Rules
    from acge_lightning.mining.scorers import CrossEncoder as CrossEncoder
    from acge_lightning.mining.scorers import EncoderScorer as EncoderScorer
    from acge_lightning.mining.sources import read_sources as read_sources
    from acge_lightning.mining.weights import quality as quality

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    cleaning="clean_text clean_texts",
    consistency="Ranks inconsistent_pairs positive_ranks",
    decontaminate="LeakIndex leak_index leaks",
    deduplicate="near_duplicates",
    filters="text_issues",
    findings="Findings",
    hard_negatives="HardNegatives choose_negatives",
    judged_texts="JudgedTexts combine_judgements",
    label_noise="LabelConfidence doubtful_labels label_confidence",
    mined_folder="mined_rows write_mined",
    miner="mine",
    neighbours="DenseNeighbours LexicalNeighbours",
    normalise="duplicate_keys row_keys text_keys",
    opposite_labels="contradictions",
    positives="headings_and_sections neighbouring_passages titles_and_bodies",
    rules="Reason Rules",
    scorers="CrossEncoder EncoderScorer",
    sources="read_sources",
    weights="quality",
)
