"""Words about music → tags of the sound, by a list of synonyms; no model and no network is asked."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence

from songray.errors import QueryError
from songray.search.text import fold

LONGEST_PHRASE = 3  # words
NEGATIONS = {"no", "not", "without", "non", "never", "minus", "except", "excluding"}
CONJUNCTIONS = {"or", "nor"}  # after a negated word, they negate the next one too

# Words = the tags that they stand for, "-" before those that they contradict.
SYNONYMS = """
calm, relaxing, relaxed, peaceful, gentle, soothing, tranquil, laid back, chilled, sleep, meditation
    = mellow, chill, chillout, slow, quiet, soft, ambient, easy listening, -loud, -fast
chill, chill out, chillout = chill, chillout, mellow
slow, slow tempo, downtempo = slow, mellow, -fast
fast, fast tempo, quick, rapid, speedy = fast, -slow
upbeat, uptempo = fast, happy, dance, -slow
energetic, lively, driving, powerful = fast, loud, dance, party, -quiet, -slow
loud, noisy = loud, -quiet, -soft
quiet, silent = quiet, soft, -loud
soft = soft, quiet, mellow, -loud
heavy, hard, aggressive, angry = loud, metal, hard rock, heavy metal, -soft, -quiet
happy, cheerful, joyful, merry, fun, playful = happy, party, catchy, -sad
sad, melancholic, melancholy, gloomy, dark, sorrowful = sad, slow, mellow, -happy
beautiful, pretty, lovely = beautiful
strange, weird, experimental, odd, bizarre = weird, experimental
voice, vocal, vocals, singing, singer, sung, lyrics, vocalist
    = vocal, vocals, voice, singing, male vocalists, female vocalists,
      -no vocals, -no vocal, -no voice, -instrumental
instrumental, voiceless, wordless
    = instrumental, no vocals, no vocal, no voice, -vocal, -vocals, -singing, -voice
female, woman, women, girl, female voice, female vocal, female singer, female vocalist
    = female, woman, female vocalists, female vocalist, female vocal, female voice
male, man, men, male voice, male vocal, male singer, male vocalist
    = male, man, male vocalists, male vocal, male voice
choir, chorus, choral = choir, choral
opera, operatic = opera
classical, classic, baroque = classical, classic
orchestra, orchestral, symphonic, symphony = classical, strings, violin, cello
string, bowed = strings, violin, cello
violin, fiddle = violin
keyboard = piano, harpsichord, synth
acoustic, unplugged = acoustic, guitar, folk, -electronic
drum, percussion, percussive, rhythmic = drums, beat, beats
beat, groove, groovy = beat, beats, dance, funk
synth, synthesizer, synthesiser, chiptune, 8 bit = synth, electronic, electro
electronic, electronica, edm, electro = electronic, electronica, electro, synth
techno, trance, rave = techno, dance, electronic
house, club = house, dance
dance, danceable, disco = dance, party
hip hop, hiphop, rap = hip-hop
r b, r and b, r n b = rnb, soul
metal, heavy metal, death metal = metal, heavy metal, hard rock
rock, rocking = rock, alternative rock, classic rock, hard rock
medieval, celtic, renaissance = folk, harp, flute, harpsichord
atmospheric, dreamy, drone, space, spacey = ambient, new age
sixties, 1960s = 60s
seventies, 1970s = 70s
eighties, 1980s = 80s
nineties, 1990s = 90s
2000s, noughties = 00s
"""


def _synonyms() -> dict[str, list[str]]:
    """The tags that each word or phrase of the table stands for."""
    lines = re.sub(r"\n +", " ", SYNONYMS).strip().splitlines()
    sides = [[re.split(r",\s+", side.strip()) for side in line.split("=")] for line in lines]
    return {phrase: tags for phrases, tags in sides for phrase in phrases}


MEANINGS = _synonyms()


def parse_question(text: str, labels: Collection[str]) -> dict[str, float]:
    """The weights of labels that words ask for, negative where they exclude. Each known word weighs 1, shared
    by the labels that it stands for. Raises QueryError where no word is known."""
    weights: dict[str, float] = {}
    for tags, sign in _meanings(_words(text), labels):
        known = [tag for tag in tags if tag.removeprefix("-") in labels]
        for tag in known:
            label = tag.removeprefix("-")
            direction = -sign if tag.startswith("-") else sign
            weights[label] = weights.get(label, 0.0) + direction / len(known)
    weights = {label: weight for label, weight in weights.items() if weight}
    if not weights:
        raise QueryError(f"no word of {text[:100]!r} is known: use {_listed(labels)}, or words like them")
    return weights


def _meanings(words: Sequence[str], labels: Collection[str]) -> Iterator[tuple[Sequence[str], int]]:
    """The tags that each known phrase stands for, longest phrases first, and −1 where it is negated."""
    by_words = {" ".join(_words(label)): label for label in labels if not label.startswith("no ")}
    position, sign = 0, 1
    while position < len(words):
        for length in range(min(LONGEST_PHRASE, len(words) - position), 0, -1):
            tags = _tags_of(" ".join(words[position : position + length]), by_words)
            if tags:
                yield tags, sign
                position += length
                if position >= len(words) or words[position] not in CONJUNCTIONS:
                    sign = 1
                break
        else:
            if words[position] in NEGATIONS:
                sign = -1
            position += 1


def _tags_of(phrase: str, labels: dict[str, str]) -> Sequence[str]:
    forms = (phrase, phrase.removesuffix("s"), f"{phrase}s")
    meanings = (MEANINGS[form] for form in forms if form in MEANINGS)
    equal = ([labels[form]] for form in forms if form in labels)
    return next(meanings, next(equal, []))


def parse_tags(tags: Sequence[str], labels: Collection[str]) -> tuple[str, ...]:
    """The labels of a filter, whose values may list several with commas. Case, accents and plurals do not
    matter. Raises QueryError, which names what is no label."""
    by_words = {" ".join(_words(label)): label for label in labels}
    chosen = []
    for tag in (part.strip() for value in tags for part in value.split(",") if part.strip()):
        phrase = " ".join(_words(tag))
        forms = (form for form in (phrase, phrase.removesuffix("s"), f"{phrase}s") if form in by_words)
        if (form := next(forms, None)) is None:
            raise QueryError(f"{tag[:100]!r} is no tag of this index: it has {_listed(labels)}")
        chosen.append(by_words[form])
    return tuple(chosen)


def _words(text: str) -> list[str]:
    """The words of a text in lower case, without accents."""
    return re.findall(r"[a-z0-9]+", fold(text))


def _listed(labels: Collection[str]) -> str:
    none = "no tags: its run gives none, or gave none yet when it was built, and songray compact adds them"
    return ", ".join(sorted(labels)) or none
