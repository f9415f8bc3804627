"""Words, names and sentences that haystacks and needles are made of. All of it was written for this benchmark."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from random import Random


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _phrases(text: str) -> tuple[str, ...]:
    return tuple(" ".join(phrase.split()) for phrase in text.split("|"))


_COLOURS = _words("""
    amber ashen azure brazen coral crimson dappled ebony emerald faded frosted gilded hazel indigo ivory jade
    lacquered marbled mauve mottled ochre pearly plaited russet scarlet silvered speckled striped tawny tinted
    umber velvet violet walnut waxed whittled woven yellowed""")
_THINGS = _words("""
    abacus accordion anvil astrolabe barometer bellows brooch cabinet candlestick carousel casket chalice
    chessboard chronometer compass cradle decanter dulcimer easel figurine goblet hourglass inkwell lantern loom
    lute mandolin metronome monocle music-box parasol pendulum periscope pocketknife quill samovar sextant
    snuffbox spinet sundial tapestry telescope thimble tinderbox trunk typewriter umbrella weathervane zither""")
_PLACES = _words("""
    Aldermoor Brackwell Caldwick Dunmarsh Elverby Farrowgate Gravenholm Hollinsea Ilverton Jarrowby Kestwick
    Lindholt Marrowdale Netherby Ormskeld Pellwater Quenby Ravenstow Saltmere Thornwick Ulverdale Vellmoor
    Wexholm Yarrowfield Zennorby Ashcombe Birkdale Crowmarsh Drayhill Eskmouth Fenwick Garside Hexley Inchmere
    Keldholm Langstrath Morwick Nunholt Oxenby Penhallow Redscar Stonegarth Tarnbrook Underskelf Wharram Wistow""")
_MOODS = _words("""
    bashful boastful brave clumsy cunning dainty drowsy eager fearless fickle gentle giddy grumpy humble jolly
    lanky merry nimble plucky proud restless shy sleepy sly solemn stubborn timid tireless wary zealous""")
_ANIMALS = _words("""
    badger bittern capercaillie curlew dormouse egret ferret gannet gecko hedgehog heron ibex jackdaw kestrel
    lapwing lemming lynx marmot marten newt ocelot osprey otter pangolin pelican plover polecat puffin quail
    salamander stoat tapir vole walrus weasel wombat""")
NAMED = {"word": ("password", "passwords"), "number": ("locker code", "locker codes"), "uuid": ("serial", "serials")}

NOISE = _phrases("""
    The kettle is on the stove. | Rain runs down the window. | A bus goes by. | Somebody closes a door upstairs.
    | The clock says it is late. | The floor was swept this morning. | There is bread on the table. | A dog
    sleeps in the hall. | The lamp gives a warm light. | Leaves lie on the steps. | The neighbours are out. |
    The tap drips a little. | A train can be heard far off. | The soup needs salt. | Two coats hang on the wall.
    | The radio plays quietly. | The chair has been mended. | Tomorrow will be much the same.""")
OPENERS = _phrases("""
    In time | More often than not | On some mornings | Looking back | For all that | Without much fuss | Now and
    then | As a rule | Against expectation | To be fair | In a quiet way | By and large | Seen from the street |
    At the end of a long week""")
SUBJECTS = _phrases("""
    a patient builder | the keeper of a small shop | anyone who has moved house | a good neighbour | the
    youngest of three | a retired surveyor | whoever writes the minutes | a careful cook | the person at the
    back of the room | an apprentice | a town that has lost its market | the committee | a teacher near the end
    of term | the night porter | someone who walks to work | a family of readers | the second owner of a garden
    | a choir without a conductor | the visitor from inland | a clerk with time to spare""")
VERBS = _phrases("""
    learns to trust | keeps returning to | quarrels with | makes room for | underestimates | speaks well of |
    gets used to | borrows from | is slow to forgive | measures everything against | finds some use for | grows
    tired of | makes a ceremony of | takes pride in | cannot explain | is surprised by | quietly replaces |
    argues for | worries about | writes long letters about""")
OBJECTS = _phrases("""
    the shape of a small habit | what was promised | the way a room is heated | an old map of the parish | the
    price of timber | a rule that nobody wrote down | the smell of wet wool | plain instructions | the last hour
    of daylight | the habit of keeping lists | a borrowed tool | the difference between thrift and meanness |
    repairs that are never finished | the weather of other people | a half-remembered recipe | the sound of the
    early shift | the comfort of being early | an argument about fences | the road that floods | a ledger with
    missing pages""")
CLAUSES = _phrases("""
    when the season turns | although few would say so | because nothing else is at hand | long after it has
    stopped being useful | before the others are awake | and nobody minds | as if it had always been that way |
    unless there are guests | whatever the papers say | until the money runs out | which is easy to mock and
    hard to replace | so that the evenings pass | and then forgets all about it | once the visitors have gone |
    while the bread is in the oven | in spite of good advice""")
_THEMES = _words("""
    bridges gardens ladders kitchens ferries letters maps orchards railways libraries markets windows winters
    roofs rivers stairs clocks schools allotments wells hedges harbours attics bicycles quarries theatres
    workshops""")
REMARKS = _phrases("""
    There is much to be said about {theme}, and most of it has been said badly. | People who know {theme} well
    seldom write about them. | Nothing in this is peculiar to {theme}. | That is how {theme} teach patience. |
    One could fill a shelf with books on {theme} and still miss the point. | It would be wrong to blame {theme}
    for that. | What holds for {theme} holds for most things that have to be looked after. | My own view of
    {theme} has changed more than once.""")


KEYS = len(_COLOURS) * len(_THINGS) * len(_PLACES)  # how many names there are


def noise(random: Random) -> Iterator[list[str]]:
    """Passages of about 100 words that say the same few things again and again, in changing order."""
    while True:
        yield [random.choice(NOISE) for _ in range(18)]


def essays(random: Random) -> Iterator[list[str]]:
    """Passages of about 100 words in the manner of an essay, each on its theme, no two alike."""
    while True:
        theme = random.choice(_THEMES)
        remarks = random.sample(REMARKS, 2)
        sentences = [remarks[0].format(theme=theme), *(_sentence(random) for _ in range(5))]
        yield [*sentences, remarks[1].format(theme=theme)]


def _sentence(random: Random) -> str:
    subject, verb, what = random.choice(SUBJECTS), random.choice(VERBS), random.choice(OBJECTS)
    if random.random() < 0.5:
        return f"{random.choice(OPENERS)}, {subject} {verb} {what} {random.choice(CLAUSES)}."
    then = f"{random.choice(VERBS)} {random.choice([o for o in OBJECTS if o != what])}"
    return f"{subject[0].upper()}{subject[1:]} {verb} {what}, {random.choice(CLAUSES)}, and {then}."


def names(random: Random, kind: str, count: int) -> list[str]:
    """`count` distinct names of things, or with kind "uuid" of numbered items; at most `KEYS` things have names."""
    if kind == "uuid":
        return [f"item {identifier(random)}" for _ in range(count)]
    found = []
    for number in random.sample(range(KEYS), count):
        rest, place = divmod(number, len(_PLACES))
        colour, thing = divmod(rest, len(_THINGS))
        found.append(f"the {_COLOURS[colour]} {_THINGS[thing]} of {_PLACES[place]}")
    return found


def value(random: Random, kind: str) -> str:
    """Something to be remembered: a pair of words, a number of seven digits, or a UUID."""
    if kind == "word":
        return f"{random.choice(_MOODS)}-{random.choice(_ANIMALS)}"
    return str(random.randrange(1_000_000, 10_000_000)) if kind == "number" else identifier(random)


def identifier(random: Random) -> str:
    """A random UUID (version 4)."""
    return str(uuid.UUID(int=random.getrandbits(128), version=4))


def needle(name: str, kind: str, held: str, *, several: bool = False) -> str:
    """The sentence that says what a named thing holds; `several` if it holds more."""
    one, many = NAMED[kind]
    return f"One of the {many} of {name} is {held}." if several else f"The {one} of {name} is {held}."


def question(asked: list[str], kind: str, values: int) -> str:
    """Asks for everything that the named things hold."""
    one, many = NAMED[kind]
    if values > 1:
        return f"What are all {values} {many} of {asked[0]}?"
    if len(asked) == 1:
        return f"What is the {one} of {asked[0]}?"
    return f"What are the {many} of {', '.join(asked[:-1])} and {asked[-1]}?"
