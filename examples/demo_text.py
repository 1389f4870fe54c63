"""The little world the demo model is trained on: short everyday stories from a seeded grammar.

Nothing is downloaded: every story is put together from the phrases below. The same seed gives the
same stories, word for word. Three notations are used in the phrases:

* ``[a|b|c]`` is a choice (the earlier an alternative stands, the more often it is taken);
* ``<walk>`` in a phrase is a verb, put into the form which the sentence asks for;
* ``{...}`` is a blank that the story fills, such as ``{S.my}`` or ``{G.do.past}``, where ``S`` is
  the one the story is about and ``G`` that one together with their company.
"""

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")

IRREGULAR = {
    "be": ("was", "being", "is"),
    "become": ("became", "becoming", "becomes"),
    "begin": ("began", "beginning", "begins"),
    "break": ("broke", "breaking", "breaks"),
    "bring": ("brought", "bringing", "brings"),
    "build": ("built", "building", "builds"),
    "buy": ("bought", "buying", "buys"),
    "catch": ("caught", "catching", "catches"),
    "choose": ("chose", "choosing", "chooses"),
    "come": ("came", "coming", "comes"),
    "cut": ("cut", "cutting", "cuts"),
    "dig": ("dug", "digging", "digs"),
    "draw": ("drew", "drawing", "draws"),
    "drink": ("drank", "drinking", "drinks"),
    "drive": ("drove", "driving", "drives"),
    "eat": ("ate", "eating", "eats"),
    "fall": ("fell", "falling", "falls"),
    "feed": ("fed", "feeding", "feeds"),
    "feel": ("felt", "feeling", "feels"),
    "find": ("found", "finding", "finds"),
    "fly": ("flew", "flying", "flies"),
    "forget": ("forgot", "forgetting", "forgets"),
    "get": ("got", "getting", "gets"),
    "give": ("gave", "giving", "gives"),
    "go": ("went", "going", "goes"),
    "grow": ("grew", "growing", "grows"),
    "hang": ("hung", "hanging", "hangs"),
    "have": ("had", "having", "has"),
    "hear": ("heard", "hearing", "hears"),
    "hit": ("hit", "hitting", "hits"),
    "hold": ("held", "holding", "holds"),
    "leave": ("left", "leaving", "leaves"),
    "lie": ("lay", "lying", "lies"),
    "light": ("lit", "lighting", "lights"),
    "make": ("made", "making", "makes"),
    "meet": ("met", "meeting", "meets"),
    "plan": ("planned", "planning", "plans"),
    "put": ("put", "putting", "puts"),
    "read": ("read", "reading", "reads"),
    "ride": ("rode", "riding", "rides"),
    "ring": ("rang", "ringing", "rings"),
    "run": ("ran", "running", "runs"),
    "see": ("saw", "seeing", "sees"),
    "sell": ("sold", "selling", "sells"),
    "set": ("set", "setting", "sets"),
    "shine": ("shone", "shining", "shines"),
    "show": ("showed", "showing", "shows"),
    "sing": ("sang", "singing", "sings"),
    "sit": ("sat", "sitting", "sits"),
    "sleep": ("slept", "sleeping", "sleeps"),
    "smell": ("smelled", "smelling", "smells"),
    "speak": ("spoke", "speaking", "speaks"),
    "spend": ("spent", "spending", "spends"),
    "stand": ("stood", "standing", "stands"),
    "stop": ("stopped", "stopping", "stops"),
    "sweep": ("swept", "sweeping", "sweeps"),
    "swim": ("swam", "swimming", "swims"),
    "take": ("took", "taking", "takes"),
    "teach": ("taught", "teaching", "teaches"),
    "tell": ("told", "telling", "tells"),
    "think": ("thought", "thinking", "thinks"),
    "throw": ("threw", "throwing", "throws"),
    "travel": ("travelled", "travelling", "travels"),
    "write": ("wrote", "writing", "writes"),
}


@dataclass(frozen=True)
class Scene:
    """A place with what people do there, what they see there and what may happen there."""

    go: tuple[str, ...]
    do: tuple[str, ...]
    see: tuple[str, ...]
    event: tuple[str, ...]
    take: tuple[str, ...] = ()


OUTDOORS = (
    Scene(
        go=(
            "<go> for a long walk along the river",
            "<walk> along the river to the old bridge",
            "<take> the small boat out on the river",
            "<spend> the afternoon by the river",
        ),
        do=(
            "<sit> on the grass under the old trees",
            "<watch> the boats on the water",
            "<feed> the ducks near the bridge",
            "<throw> flat stones into the water",
            "<eat> bread and cheese by the water",
            "<rest> in the shade of a tall tree",
            "<look> for fish in the clear water",
        ),
        see=(
            "the water <be> calm and clear",
            "the ducks <swim+> slowly under the bridge",
            "a white boat <go> past without a sound",
            "the old trees <stand+> quietly by the water",
        ),
        event=(
            "a small dog <jump> into the water and <swim> back with a stick",
            "an old man with a fishing rod <tell> {me} a story about the river",
            "a bird <catch> a fish right in front of {me}",
        ),
        take=("a basket with bread and cheese", "some old bread for the ducks", "a warm blanket"),
    ),
    Scene(
        go=(
            "<go> to the park in the middle of the town",
            "<have> a picnic in the park",
            "<meet> some friends in the park",
            "<take> the dog for a walk in the park",
        ),
        do=(
            "<look> at the white clouds",
            "<play> with a ball on the grass",
            "<eat> an ice cream near the fountain",
            "<talk> about old times on a bench",
            "<read> a book under a tree",
            "<listen> to the music near the fountain",
            "<walk> around the little lake",
        ),
        see=(
            "the children <play+> on the grass",
            "the flowers <be+> red and yellow",
            "a man <play> the guitar near the fountain",
            "the birds <sing+> in the trees",
        ),
        event=(
            "a ball <roll> up to {me}, and a little boy <ask> for it with a smile",
            "a brown dog <run> away with one of the apples, and everybody <laugh+>",
            "an old friend from school <come> past and <sit> down for a while",
        ),
        take=("a blanket and some apples", "a ball and a good book", "some cake and cold tea"),
    ),
    Scene(
        go=(
            "<work> in the garden behind the house",
            "<plant> some flowers in the garden",
            "<spend> the whole day in the garden",
            "<clean> up the garden",
        ),
        do=(
            "<water> the young tomatoes",
            "<dig> a new bed for the carrots",
            "<cut> the long grass",
            "<pick> the ripe apples",
            "<plant> roses next to the gate",
            "<paint> the old fence green",
            "<drink> cold tea in the shade",
        ),
        see=(
            "the roses <smell+> sweet",
            "the earth <be> soft and dark",
            "the bees <fly+> from flower to flower",
            "the tomatoes <be+> almost red",
        ),
        event=(
            "the neighbour <look> over the fence and <give> {me} a bag of beans",
            "a cat <come> over the wall and <fall> asleep between the flowers",
            "a small bird <find> a worm in the fresh earth",
        ),
        take=("a hat against the sun", "a pair of old gloves", "some seeds from the market"),
    ),
    Scene(
        go=(
            "<go> to the sea",
            "<drive> to the beach",
            "<walk> along the beach",
            "<spend> a day by the sea",
        ),
        do=(
            "<swim> in the cool water",
            "<lie> in the warm sand",
            "<look> for shells on the beach",
            "<build> a castle out of sand",
            "<watch> the ships far out at sea",
            "<eat> fried fish at the harbour",
            "<walk> along the water with bare feet",
        ),
        see=(
            "the waves <be+> small and gentle",
            "the sand <be> warm and white",
            "a big ship <go> slowly past the lighthouse",
            "the sea <shine> like silver",
        ),
        event=(
            "a big wave <wash> over {my} feet, and everybody <laugh>",
            "a white bird <take> the bread right out of the bag",
            "a fisherman <show> {me} a large blue crab",
        ),
        take=("a towel and a bottle of water", "a big hat and some fruit", "an old blue umbrella"),
    ),
    Scene(
        go=(
            "<go> for a walk in the forest",
            "<look> for mushrooms in the forest",
            "<follow> the path through the forest",
            "<pick> berries in the forest",
        ),
        do=(
            "<listen> to the birds",
            "<collect> mushrooms in a basket",
            "<rest> on a fallen tree",
            "<pick> sweet berries along the path",
            "<drink> water from the little stream",
            "<look> for the old stone house",
            "<walk> up to the top of the hill",
        ),
        see=(
            "the air <be> fresh and <smell> of wood",
            "the light <fall> softly through the leaves",
            "the tall trees <move+> gently in the wind",
            "the forest <be> quiet and green",
        ),
        event=(
            "a young deer <stand> on the path for a moment and then <run> away",
            "the path <come> to an end, but an old woman with a basket <show> {me} the way",
            "a squirrel <throw> a nut from a tree",
        ),
        take=("a basket and a small knife", "good shoes and a map", "some bread and a few eggs"),
    ),
    Scene(
        go=(
            "<ride> {my} bicycle to the lake",
            "<go> to the lake",
            "<fish> at the lake",
            "<camp> at the lake",
        ),
        do=(
            "<swim> to the little island",
            "<catch> a few fish",
            "<rest> on the wooden pier",
            "<have> lunch next to the water",
            "<take> some pictures of the birds",
            "<look> at the mountains",
            "<dry> in the sun",
        ),
        see=(
            "the lake <be> as smooth as a mirror",
            "the mountains <be+> blue in the distance",
            "a small sailing boat <cross> the lake",
            "the reeds <move+> in the light wind",
        ),
        event=(
            "a big fish <jump> out of the water, but nobody <have> a camera ready",
            "the wind <take> {my} hat, and a boy in a boat <bring> it back",
            "a family of ducks <come> very close and <wait> for bread",
        ),
        take=("a fishing rod and some bread", "a camera", "a towel and some sandwiches"),
    ),
    Scene(
        go=(
            "<climb> the hill behind the village",
            "<walk> up the mountain",
            "<hike> in the mountains",
            "<take> the path up to the mountain hut",
        ),
        do=(
            "<look> down at the valley",
            "<rest> on a warm stone",
            "<drink> hot tea in the mountain hut",
            "<count> the villages in the valley",
            "<wave> to the people on the other path",
            "<eat> bread and ham at the top",
            "<take> a picture of the valley",
        ),
        see=(
            "the air <be> clear and cool",
            "the houses in the valley <look+> like toys",
            "the bells of the cows <ring+> on the meadow",
            "the clouds <pass+> slowly over the top",
        ),
        event=(
            "a curious goat <follow> {me} all the way to the top",
            "a thick cloud <come> over the mountain, but it soon <go> away again",
            "the man in the hut <bring> fresh milk and <tell> an old tale",
        ),
        take=("strong shoes and a warm coat", "a map and plenty of water", "bread, ham and tea"),
    ),
    Scene(
        go=(
            "<go> to the market",
            "<buy> fresh fruit at the market",
            "<visit> the market in the old town",
            "<walk> to the market square",
        ),
        do=(
            "<buy> apples and pears",
            "<taste> the different kinds of cheese",
            "<choose> a bunch of yellow flowers",
            "<talk> to the woman who <sell:> honey",
            "<look> at the fresh fish",
            "<fill> the basket with vegetables",
            "<drink> a coffee at the corner",
        ),
        see=(
            "the square <be> full of people",
            "the apples <be+> red and sweet",
            "the whole street <smell> of fresh bread",
            "the farmers <call+> out their prices",
        ),
        event=(
            "the baker <give> {me} a warm roll for free",
            "a bag <break> and the oranges <roll+> across the square, but everyone <help>",
            "a street band <begin> to play, and some people <dance+>",
        ),
        take=("a large basket", "two empty bags", "a short list"),
    ),
    Scene(
        go=(
            "<visit> the farm of {my} uncle",
            "<help> on the farm",
            "<go> to the farm outside the village",
            "<ride> a horse on the farm",
        ),
        do=(
            "<feed> the chickens",
            "<ride> the brown horse",
            "<collect> fresh eggs",
            "<carry> water to the sheep",
            "<help> with the hay",
            "<drink> a glass of fresh milk",
            "<play> with the young cats in the barn",
        ),
        see=(
            "the cows <stand+> in the shade",
            "the fields <be+> golden in the sun",
            "the barn <smell> of hay",
            "a proud rooster <sit> on the fence",
        ),
        event=(
            "one of the sheep <run> out of the gate, and it <take> an hour to catch it",
            "a little lamb <follow> {me} everywhere",
            "the old horse <eat> an apple out of {my} hand",
        ),
        take=("some carrots for the horse", "a pair of old boots", "a cake for the family"),
    ),
    Scene(
        go=(
            "<walk> through the city",
            "<explore> the old part of the city",
            "<take> the tram into the city",
            "<spend> the day in the city",
        ),
        do=(
            "<look> at the shop windows",
            "<climb> the tower of the old church",
            "<have> lunch in a small restaurant",
            "<watch> the people from a small café",
            "<buy> a present for {my} mother",
            "<cross> the bridge to the old town",
            "<visit> the castle on the hill",
        ),
        see=(
            "the streets <be+> full of life",
            "the trams <ring+> their bells",
            "the houses <be+> tall and bright",
            "the light <shine> on the old roofs",
        ),
        event=(
            "a woman with a map <ask> {me} the way to the station",
            "a painter on the bridge <draw> a picture of {me}",
            "there <be> so much to see that it <get> dark before anybody <think> of going home",
        ),
        take=("a map and a camera", "comfortable shoes", "a little money for the shops"),
    ),
)

INDOORS = (
    Scene(
        go=(
            "<make> a big pot of soup",
            "<cook> dinner for the whole family",
            "<try> a new recipe",
            "<cook> something warm",
        ),
        do=(
            "<cut> the onions and the carrots",
            "<wash> the vegetables",
            "<put> the potatoes into the pot",
            "<taste> the soup with a wooden spoon",
            "<set> the table for everyone",
            "<add> a little salt and pepper",
            "<bring> the plates to the table",
        ),
        see=(
            "the kitchen <be> warm and bright",
            "the soup <smell> wonderful",
            "the pot <sing> softly on the stove",
            "the windows <be+> white with steam",
        ),
        event=(
            "the salt <be> gone, but the neighbour <have> enough for both houses",
            "the cat <sit> under the table and <wait> for a piece of meat",
            "the soup <be> a little too hot, so everybody <wait> and <laugh>",
        ),
    ),
    Scene(
        go=(
            "<bake> a cake",
            "<bake> bread at home",
            "<make> an apple cake",
            "<bake> cookies for {my} friends",
        ),
        do=(
            "<mix> the flour with the eggs",
            "<peel> the apples",
            "<put> the cake into the oven",
            "<wait> in front of the oven",
            "<wash> the big bowl",
            "<cut> the cake into small pieces",
            "<make> a pot of tea",
        ),
        see=(
            "the whole house <smell> of sugar and butter",
            "the cake <be> golden and soft",
            "the oven <be> nice and hot",
            "the table <be> white with flour",
        ),
        event=(
            "the first cake <be> too dark, but the second one <be> perfect",
            "the smell <bring> the neighbours to the door, and all of them <get+> a piece",
            "there <be> no butter left, so {my} brother <run> to the shop",
        ),
    ),
    Scene(
        go=(
            "<read> a good book at home",
            "<stay> in bed with a book",
            "<read> by the window",
            "<finish> {my} book",
        ),
        do=(
            "<make> a cup of hot tea",
            "<sit> in the big chair by the fire",
            "<read> three chapters",
            "<listen> to the rain on the roof",
            "<put> a blanket over {my} knees",
            "<look> out of the window from time to time",
            "<eat> a piece of chocolate",
        ),
        see=(
            "the room <be> quiet and warm",
            "the fire <make> a soft light",
            "the cat <sleep> on the carpet",
            "the book <be> about a long journey",
        ),
        event=(
            "the cat <jump> onto the book and <fall> asleep there",
            "the telephone <ring>, but it <be> only a wrong number",
            "the story <be> so good that dinner <have> to wait",
        ),
    ),
    Scene(
        go=(
            "<visit> the museum",
            "<go> to the museum in the old town",
            "<see> the new pictures in the museum",
            "<spend> a few hours in the museum",
        ),
        do=(
            "<look> at the old paintings",
            "<walk> from room to room",
            "<read> about the old kings",
            "<buy> a card in the museum shop",
            "<sit> in front of a large picture of the sea",
            "<listen> to a guide",
            "<drink> coffee in the museum café",
        ),
        see=(
            "the rooms <be+> large and silent",
            "the pictures <show+> ships and storms",
            "the old clocks <be+> made of gold",
            "a guard <sit> next to the door",
        ),
        event=(
            "a little girl <explain> a painting to her grandfather better than the guide",
            "the lights <go+> out for a minute, and everybody <wait> in the dark",
            "the guard <tell> {me} a secret about the oldest picture",
        ),
    ),
    Scene(
        go=(
            "<paint> a picture",
            "<paint> the kitchen yellow",
            "<draw> a picture of the sea",
            "<paint> a picture for {my} grandmother",
        ),
        do=(
            "<mix> blue and yellow to get green",
            "<clean> the brushes with warm water",
            "<draw> the lines with a pencil",
            "<paint> the sky first",
            "<open> the window to let the air in",
            "<hang> the picture on the wall",
            "<wash> the paint off {my} hands",
        ),
        see=(
            "the colours <be+> bright and happy",
            "the floor <be> covered with old paper",
            "the light in the room <be> very good",
            "the paint <dry> quickly",
        ),
        event=(
            "the dog <walk> through the paint and <leave> blue feet on the floor",
            "a drop of red <fall> on the paper and <become> a small flower",
            "the blue paint <be> empty, so the sea <become> green",
        ),
    ),
    Scene(
        go=(
            "<play> music at home",
            "<practise> the piano",
            "<learn> a new song",
            "<sing> with the choir",
        ),
        do=(
            "<play> an old song on the piano",
            "<sing> all the songs from school",
            "<listen> to some records",
            "<learn> the difficult part by heart",
            "<write> down the words of the song",
            "<dance> around the table",
            "<drink> a glass of water",
        ),
        see=(
            "the piano <sound> soft and clear",
            "the song <be> slow and beautiful",
            "the whole house <be> full of music",
            "the neighbours <open+> their windows to listen",
        ),
        event=(
            "the neighbour <come> with her violin and <play> along",
            "the dog <begin> to sing too, and everybody <laugh>",
            "one string <break>, but the music <go> on",
        ),
    ),
    Scene(
        go=(
            "<repair> the old radio",
            "<repair> {my} bicycle",
            "<build> a table out of wood",
            "<work> in the little workshop",
        ),
        do=(
            "<look> for the right tools",
            "<clean> every part with oil",
            "<cut> the wood with care",
            "<hold> the lamp",
            "<put> the pieces back together",
            "<sweep> the floor of the workshop",
            "<make> a list of the missing parts",
        ),
        see=(
            "the workshop <smell> of wood and oil",
            "the tools <hang+> in order on the wall",
            "the lamp <give> a warm light",
            "the work <be> slow but pleasant",
        ),
        event=(
            "one screw <fall> under the table, and it <take> a long time to find it",
            "{my} grandfather <come> in and <show> {me} an old trick",
            "in the end one part <be> left over, but everything <work>",
        ),
    ),
    Scene(
        go=(
            "<go> to the library",
            "<spend> some quiet hours in the library",
            "<bring> {my} books back to the library",
            "<study> in the library",
        ),
        do=(
            "<look> for a book about the stars",
            "<read> the newspaper",
            "<choose> three new books",
            "<sit> at the table by the window",
            "<ask> the librarian for advice",
            "<learn> some new words",
            "<write> a page in {my} notebook",
        ),
        see=(
            "the library <be> calm and warm",
            "the shelves <go+> up to the ceiling",
            "the old books <smell+> of dust and time",
            "only the clock <make> a sound",
        ),
        event=(
            "a letter from long ago <fall> out of an old book",
            "the librarian <bring> the very book that everyone <be:past> looking for",
            "a boy <laugh> so much about his book that the librarian <have> to smile",
        ),
    ),
    Scene(
        go=(
            "<write> a long letter to {my} sister",
            "<write> some letters",
            "<answer> the letter from {my} old friend",
            "<write> a letter to {my} grandmother",
        ),
        do=(
            "<look> for a nice sheet of paper",
            "<write> about the weather and the garden",
            "<put> a picture into the letter",
            "<tell> the news about the family",
            "<think> about old times",
            "<ask> many questions",
            "<take> the letter to the post office",
        ),
        see=(
            "the pen <move> quietly over the paper",
            "the desk <stand> in front of the window",
            "the page <be> soon full",
            "the lamp <shine> on the white paper",
        ),
        event=(
            "the ink <be> empty, so the end of the letter <be> written with a pencil",
            "the postman <come> just at the right time",
            "an answer <come> only three days later",
        ),
    ),
)

TRAVEL = (
    Scene(
        go=(
            "<take> the train to the coast",
            "<take> the early train to the city",
            "<travel> by train to {my} grandmother",
            "<go> on a journey by train",
        ),
        do=(
            "<find> a seat by the window",
            "<look> out at the fields",
            "<read> the newspaper",
            "<eat> a sandwich",
            "<talk> to an old lady about her garden",
            "<drink> coffee from a paper cup",
            "<sleep> for half an hour",
        ),
        see=(
            "the train <be> on time",
            "the fields and villages <pass+> by quickly",
            "the station <be> full of people with bags",
            "the train <go> over a long bridge",
        ),
        event=(
            "the train <stop> in the middle of a field because of a cow",
            "the conductor <tell> a joke, and the whole train <laugh>",
            "a young man <forget> his bag, but a girl <run> after him with it",
        ),
        take=("a book and a sandwich", "a small bag", "a warm coat and a newspaper"),
    ),
)

WINTER = (
    Scene(
        go=(
            "<build> a snowman in front of the house",
            "<walk> through the fresh snow",
            "<go> skating on the frozen lake",
            "<play> in the snow",
        ),
        do=(
            "<throw> snowballs",
            "<give> the snowman a carrot for a nose",
            "<put> on a warm hat and gloves",
            "<drink> hot chocolate",
            "<feed> the hungry birds",
            "<clear> the path to the gate",
            "<pull> the sledge up the hill",
        ),
        see=(
            "the snow <be> deep and white",
            "the trees <be+> covered with ice",
            "the whole village <be> silent",
            "the air <be> cold and clear",
        ),
        event=(
            "a snowball <hit> the teacher, but she only <laugh> and <throw> one back",
            "a red bird <sit> down on the head of the snowman",
            "the sledge <go> so fast that {my} hat <fly> away",
        ),
        take=("a warm scarf", "hot tea in a bottle", "the old sledge"),
    ),
)

WOMEN = "Anna Maria Emma Clara Lucy Sarah Julia Rosa Nina Helen Alice Eva Laura Mia Ruth Olga"
MEN = "Tom Peter Paul David Max Leo Ben Karl Martin Oscar Jack Simon Adam Felix Daniel Hugo"

JOBS = (
    ("a baker", "in a small shop at the corner", ("gets up at three in the morning",
     "bakes bread, rolls and sweet cakes", "knows every customer by name",
     "wears a tall white hat")),
    ("a teacher", "at the school in our village", ("teaches the children to read and write",
     "tells stories about other countries", "never loses patience",
     "goes on a trip with the class every summer")),
    ("a doctor", "in the hospital near the park", ("helps people who are ill",
     "often works at night", "listens carefully to every patient",
     "always has a kind word for the children")),
    ("a train driver", "for the railway", ("drives the early train to the coast",
     "knows every bridge and every tunnel", "loves the moment when the sun comes up",
     "waves to the children along the line")),
    ("a gardener", "in the big park", ("plants flowers in spring and trees in autumn",
     "cuts the grass and waters the roses", "speaks softly to the plants",
     "knows the names of all the birds")),
    ("a cook", "in a small restaurant by the river", ("buys fresh fish every morning",
     "makes the best soup in the town", "tries a new recipe every week",
     "sings while the potatoes are in the pot")),
    ("a fisherman", "down at the harbour", ("goes out to sea before the sun is up",
     "repairs the nets in the afternoon", "knows the wind and the waves",
     "sells fresh fish on the pier")),
    ("a postman", "in the old town", ("brings letters and cards to every house",
     "rides a yellow bicycle", "loves every dog in the street",
     "always stops for a short talk at the gate")),
    ("a programmer", "in an office in the city", ("writes programs for a large library",
     "drinks a lot of coffee", "likes it when a difficult problem becomes simple",
     "explains computers with simple words")),
    ("a farmer", "on a farm outside the village", ("gets up with the chickens",
     "grows wheat, potatoes and beans", "looks at the sky and knows what the weather will be",
     "sells milk and eggs at the market")),
)  # fmt: skip

DISHES = (
    ("a simple vegetable soup", "carrots, onions and potatoes", (
     "wash the vegetables and cut them into small pieces", "put them into a pot of hot water",
     "add a little salt", "wait for half an hour"), "Eat it hot, with a piece of fresh bread."),
    ("an apple cake", "apples, flour, eggs, butter and sugar", (
     "peel the apples", "mix the flour with the eggs, the butter and the sugar",
     "put the apples on top", "bake the cake for an hour"), "It is best when it is still warm."),
    ("a good tomato salad", "ripe tomatoes, an onion and some oil", (
     "wash the tomatoes and cut them", "cut the onion into thin rings",
     "put everything into a bowl", "add oil, salt and pepper"), "It goes well with cheese."),
    ("a cup of tea", "fresh water and good tea", (
     "bring the water to the boil", "put the tea into a warm pot", "pour the hot water over it",
     "wait for four minutes"), "Some people like it with milk, others with honey."),
    ("fresh bread", "flour, water, salt and a little time", (
     "mix the flour with the water and the salt", "let it rest under a cloth",
     "form a round loaf", "bake it in a hot oven"), "Let it cool before you cut it."),
    ("an omelette", "three eggs, butter and a little cheese", (
     "break the eggs into a bowl", "melt the butter in a pan", "pour the eggs into the hot pan",
     "put the cheese on top"), "It is ready in five minutes."),
)  # fmt: skip

SEASONS = (
    ("Spring", "the days become longer and the first flowers open", (
     "the birds come back from the south", "the trees get their first green leaves",
     "the farmers work in the fields", "people sit outside again"),
     "After the long winter everybody is glad to feel the sun."),
    ("Summer", "the days are long and the evenings are warm", (
     "the children swim in the lake", "the gardens are full of roses",
     "people eat ice cream in the park", "many families travel to the sea"),
     "At night you can hear music from the open windows."),
    ("Autumn", "the leaves turn red and yellow", (
     "the apples are ripe", "the wind blows over the empty fields",
     "the children collect nuts in the forest", "the evenings become cool"),
     "It is a good time for soup, tea and long stories."),
    ("Winter", "the days are short and the nights are cold", (
     "the lake is frozen", "snow lies on the roofs", "the children build a snowman",
     "people light candles in their windows"),
     "It is pleasant to sit by the fire with a good book."),
)  # fmt: skip

TOWN = (
    "there is a small station with a red roof",
    "an old bridge goes over the river",
    "the market is on Saturday",
    "in the middle there is a square with a fountain",
    "the school stands next to the church",
    "behind the last houses the forest begins",
    "the baker opens at six in the morning",
    "the harbour smells of fish and salt",
    "a little tram goes up the hill",
    "everybody knows everybody",
)

GOOD_DAY = (
    "the weather is [really|very|so] [nice|good|beautiful|warm|fine]",
    "the sun is shining[| and the sky is blue| again]",
    "it is [warm|sunny|bright] [outside|and the sky is blue]",
    "the sky is [clear and blue|blue and wide]",
)
BAD_DAY = (
    "it is raining[| very hard| outside]",
    "the weather is [really|very|quite] [bad|cold|grey|wet]",
    "it is [cold|wet|windy] outside",
    "there is a [strong|cold] wind",
)
PLANNING = "planning on|thinking about|looking forward to"
MOODS = "tired but happy|in a good mood|happy and content|a little tired"
WAY_HOME = (
    "in the evening {G} [went|walked|came] home, {M}",
    "when it got dark, {G} went home, {M}",
    "{G} came home late and slept very well",
    "at home there was hot [soup|tea] for everyone",
)
END_PAST = (
    "in the evening {G.was} {M}",
    "it was [a wonderful|a lovely|a very good|an unusual] day",
    "{G} talked about it for a long time",
    "{G} decided to do it again [soon|next week|very soon]",
)
WAY_HOME_PLAN = (
    "in the evening {G} will come home, {M}",
    "{G} will be back before it gets dark",
    "in the evening {G} will cook something [good|simple|warm] and go to bed early",
    "if the weather stays like this, {G} will do it again [tomorrow|next week]",
)
END_PLAN = (
    "it will surely be a [wonderful|lovely|good] day",
    "I [hope|think] that it will be a good day",
    "there is no better way to spend [the day|a day like this]",
    "I am already looking forward to it",
)
PLANS = (
    "[first|there] {G} will {G.do.base} and {G.do.base}",
    "{G} want to {G.do.base} and {G.do.base}",
    "{G.am} going to {G.do.base}, and then {G} will {G.do.base}",
    "{G} will {G.do.base} first",
)
LATER_PLANS = (
    "[after that|then|later] {G} will {G.do.base}",
    "perhaps {G} will also {G.do.base}",
    "if there is time, {G} will {G.do.base} too",
    "in the afternoon {G} will {G.do.base}",
)
DEEDS = (
    "[first|at first] {G} {G.do.past}, and then {G} {G.do.past}",
    "{G} {G.do.past} and {G.do.past}",
    "there {G} {G.do.past}, {G.do.past} and {G.do.past}",
    "{G} {G.do.past}, and later {G} {G.do.past}",
)
HABITS = (
    "[every Sunday|after work|in the afternoon|almost every day|on free days] {S} {S.do.pres} and"
    " {S.do.pres}",
    "{S} often {S.do.pres} and {S.do.pres}",
    "{S} {S.do.pres} first, and then {S} {S.do.pres}",
)
MORE_HABITS = (
    "sometimes I come along, and we {W.do.base}",
    "{S} also {S.do.pres} when there is time",
    "{see_now}, and {S} [feel+ at home there|like+ that very much]",
    "last week {S} {S.do.past} for the first time",
)
OPINIONS = (
    "{S} [say+|think+] that [there is nothing better in the world|it makes every day a little"
    " better|it is never boring]",
    "{S} always [come+ back|tell+ me about it] with a smile",
    "I like to listen when {S} [talk+] about it",
    "I would like to do that too one day",
)
EVENTS = (
    "suddenly {happens}",
    "then something funny happened: {happens}",
    "after a while {happens}",
    "{happens}",
)
PAST_DAYS = (
    "yesterday|last Sunday|last week|one day in spring|one warm day in summer|on Saturday|"
    "a few days ago|last year in autumn|on a quiet Sunday"
)

SHAPES: tuple[tuple[int, str, str, str], ...] = (
    # weight, who tells, the kinds of scene, the sentences
    (16, "I", "out", "today {good} and {S.am} {planning} {S.go.ing}{with}."
     " {plan}. {later}. {hope}."),
    (5, "I", "in", "today {bad}, so {S.am} {planning} {S.go.ing}{with}. {plan}. {later}. {hope}."),
    (5, "I", "any", "[tomorrow|on Saturday|next week|this afternoon] {S} [will|want+ to|would like"
     " to] {S.go.base}{with}. {plan}. {later}. {hope}."),
    (3, "I", "any", "{S.have} [a free day|the whole day free|no work today], so {S.am} {planning}"
     " {S.go.ing}{with}. {plan}. {later}. {hope}."),
    (8, "any", "in out", "it was [raining|raining hard|cold and grey|very wet] in the morning, so"
     " {S.name} [stayed at home and {S.go.past}|decided to {S.go.base}|{S.go.past} instead of going"
     " out]. {see}. {S} {S.do.past} and {S.do.past}. [In the afternoon|After lunch|Later] the [sun"
     " came out|rain stopped|sky became blue] and {S.next} {S.go.past}. {see}. {end}."),
    (4, "any", "winter", "it [was snowing|had snowed] in the [morning|night], so {S.name} [decided"
     " to {S.go.base}|{S.go.past}]{with}. {past}. {end}."),
    (3, "I", "winter", "today there is snow everywhere and {S.am} {planning} {S.go.ing}{with}."
     " {plan}. {later}. {hope}."),
    (14, "any", "any", "{days} {S.name} {S.go.past}{with}. {past}. {end}."),
    (6, "any", "any", "{days} {S.name} {S.go.past}{with}. {past}. {event}. {end}."),
    (5, "any", "out", "the weather was [nice|beautiful|fine|very good] and {S.name} [wanted to"
     " {S.go.base}|{S.go.past}]{with}. {past}. {event}. {end}."),
    (10, "friend", "any", "{my_friend} [likes|loves] to {S.go.base}. {habit}. {more}. {opinion}."),
    (5, "friend", "any", "{my_friend} lives in [a small village|the old town|a house near the"
     " river|the city]. {habit}. {more}. {opinion}."),
    (7, "friend", "none", "{my_friend} is {job}. {opinion}."),
    (6, "pair", "any", '"[do you want to|shall we|would you like to] {S.go.base}?" asked {A}.'
     ' "[Yes|Of course|That is a good idea|With pleasure]," said {B}. "[I have time|It is a good'
     " day for it|I was just thinking about it|Let us go at once].\" so they {G.go.past}."
     " {see}. {deeds}. {end}."),
    (4, "any", "none", "{dish}."),
    (4, "any", "none", "{season}."),
    (4, "any", "none", "{town}."),
    (5, "any", "any", "every [morning|day|Sunday|summer] {S.name} {S.do.pres} and {S.do.pres}."
     " {see_now}. {S} [never get+ tired of it|like+ it very much|would not miss it for anything]."
     " [Sometimes|From time to time] a friend [comes along|joins in], and then {T} {T.do.base}"
     " together."),
    (4, "any", "out", "{S.name} got up early [and opened the window|because the sun was shining]."
     " after [breakfast|a cup of coffee] {S} {S.go.past}{with}. {past}. {end}."),
    (4, "any", "travel", "the train left at [seven|eight|nine] in the morning. {S.name} {S.do.past}"
     " and {S.do.past}. {see}. {event}. [After two hours|At noon|In the evening] {S}"
     " arrived, {M}."),
)  # fmt: skip


def pick(rng: random.Random, options: Sequence[T]) -> T:
    """Choose an option, the earlier ones more often (so that a greedy reader is never in doubt)."""
    weights = [1 / (rank + 2) for rank in range(len(options))]
    return rng.choices(options, weights)[0]


def conjugate(verb: str, form: str, plural: bool = False) -> str:
    """Put a verb into one of the forms base, past, ing and pres (present, by number)."""
    if form == "base" or (form == "pres" and plural and verb != "be"):
        return verb
    if verb == "be" and plural and form != "ing":
        return {"past": "were", "pres": "are"}[form]
    past, ing, third = IRREGULAR.get(verb) or regular(verb)
    return {"past": past, "ing": ing, "pres": third}[form]


def regular(verb: str) -> tuple[str, str, str]:
    """Give the past, the -ing form and the third person of a regular verb."""
    if verb.endswith("e"):
        return verb + "d", verb[:-1] + "ing", verb + "s"
    if verb.endswith("y") and verb[-2] not in "aeo":
        return verb[:-1] + "ied", verb + "ing", verb[:-1] + "ies"
    third = verb + ("es" if verb.endswith(("sh", "ch", "s", "x", "z")) else "s")
    return verb + "ed", verb + "ing", third


def inflect(phrase: str, form: str, plural: bool = False) -> str:
    """Inflect each verb of a phrase: ``<sit>``; ``+`` marks a plural, ``:form`` a fixed form."""

    def one(match: re.Match[str]) -> str:
        verb, mark, fixed = match.group(1), match.group(2), match.group(3)
        if fixed is not None:
            return conjugate(verb, fixed or "pres")
        return conjugate(verb, form, plural or mark == "+")

    return re.sub(r"<(\w+)(\+?)(?::(\w*))?>", one, phrase)


@dataclass(frozen=True)
class Person:
    """Who does something: the name at first mention, the pronouns, and the number."""

    name: str
    subject: str
    my: str
    me: str

    @property
    def plural(self) -> bool:
        """Whether verbs in the present stand in the base form."""
        return self.subject in ("I", "we", "they")

    def word(self, key: str) -> str:
        """Give a pronoun or an auxiliary verb that fits this person."""
        number = {"I": 0, "we": 1, "they": 1}.get(self.subject, 2)
        table = {
            "am": ("am", "are", "is"),
            "was": ("was", "were", "was"),
            "have": ("have", "have", "has"),
        }
        if key in table:
            return f"{self.subject} {table[key][number]}"
        return str(getattr(self, key))


I = Person("I", "I", "my", "me")  # noqa: E741 - the person is called I
WE = Person("we", "we", "our", "us")
THEY = Person("they", "they", "their", "them")


def somebody(rng: random.Random) -> Person:
    """Choose a woman or a man with a name."""
    if rng.random() < 0.5:
        return Person(pick(rng, WOMEN.split()), "she", "her", "her")
    return Person(pick(rng, MEN.split()), "he", "his", "him")


@dataclass
class Story:
    """One story in the making: its people, its scenes, and what has been told already."""

    rng: random.Random
    who: Person
    group: Person
    scenes: list[Scene]
    friend: Person
    other: Person
    unused: dict[str, list[str]] = field(default_factory=dict)

    def draw(self, pool: str) -> str:
        """Take a phrase of the present scene that this story has not used yet."""
        if not self.unused.get(pool):
            self.unused[pool] = list(getattr(self.scenes[0], pool))
        phrase = pick(self.rng, self.unused[pool])
        self.unused[pool].remove(phrase)
        return phrase

    def act(self, person: Person, pool: str, form: str) -> str:
        """Tell what a person does, in the form asked for."""
        phrase = inflect(self.draw(pool), form, person.plural and form == "pres")
        return self.own(phrase, person)

    def own(self, phrase: str, person: Person) -> str:
        """Fill in whose things and whom a phrase is about."""
        return phrase.replace("{my}", person.my).replace("{me}", person.me)

    def next_scene(self) -> str:
        """Move on to the next scene."""
        self.scenes = self.scenes[1:]
        self.unused.clear()
        return self.who.subject

    def company(self) -> str:
        """Perhaps let somebody come along; from then on the group is more than one."""
        if self.rng.random() < 0.5:
            return ""
        self.group = WE if self.who is I else THEY
        mine = self.who.my
        return self.choose(
            f" with {mine} friend {self.friend.name}| with {self.friend.name}| with {mine} sister|"
            f" with {mine} brother| with {mine} mother| with {mine} children"
        )

    def choose(self, alternatives: str) -> str:
        """Choose among alternatives that are separated by bars."""
        return pick(self.rng, alternatives.split("|"))

    def expand(self, text: str) -> str:
        """Make the choices of a text, the inner ones first, then fill its blanks in order."""
        while match := re.search(r"\[([^\[\]]*)\]", text):
            text = text[: match.start()] + self.choose(match.group(1)) + text[match.end() :]
        while match := re.search(r"\{([^{}]*)\}", text):
            text = (
                text[: match.start()] + self.expand(self.fill(match.group(1))) + text[match.end() :]
            )
        return re.sub(r"(\w+)\+", lambda found: self.agree(found.group(1)), text)

    def agree(self, verb: str) -> str:
        """Let a verb in the present agree with the one the story is about."""
        return conjugate(verb, "pres", self.who.plural)

    def fill(self, blank: str) -> str:
        """Fill one blank: of a person (``S.my``, ``G.do.past``) or a piece of the story."""
        head, *rest = blank.split(".")
        people = {"S": self.who, "G": self.group, "W": WE, "T": WE if self.who in (I, WE) else THEY}
        if head in people:
            return self.of_person(people[head], rest)
        return PIECES[head](self)

    def of_person(self, person: Person, rest: list[str]) -> str:
        """Fill a blank that belongs to a person."""
        if not rest:
            return person.subject
        if rest == ["next"]:
            return self.next_scene()
        if len(rest) == 2:
            return self.act(person, rest[0], rest[1])
        return person.word(rest[0])


def see(story: Story, form: str = "past") -> str:
    """Tell what there is to see."""
    first = inflect(story.draw("see"), form)
    if story.rng.random() < 0.6:
        return first
    return f"{first}, and {inflect(story.draw('see'), form)}"


def happens(story: Story) -> str:
    """Tell what happened by chance."""
    return story.own(inflect(story.draw("event"), "past"), story.group)


def past(story: Story) -> str:
    """Tell what was seen and done."""
    orders = ["{see}. {deeds}", "{deeds}", "{deeds}. {see}"]
    if story.scenes[0].take:
        orders.append(f"{{G}} took {story.draw('take')} along. {{deeds}}")
    return pick(story.rng, orders)


def plan(story: Story) -> str:
    """Tell what will be done, and perhaps what is to be taken along."""
    deeds = pick(story.rng, PLANS)
    if story.scenes[0].take and story.rng.random() < 0.3:
        return f"{{G}} will take {story.draw('take')} along. {deeds}"
    return deeds


def ending(story: Story, way_home: Sequence[str], anywhere: Sequence[str]) -> str:
    """End a story; nobody who stayed at home comes home."""
    if story.scenes and story.scenes[0] in INDOORS:
        return pick(story.rng, anywhere)
    return pick(story.rng, (*way_home, *anywhere))


def my_friend(story: Story) -> str:
    """Introduce the one the story is about as somebody I know."""
    woman, man = "friend|neighbour|sister|aunt", "friend|neighbour|brother|uncle"
    kin = story.choose(woman if story.who.subject == "she" else man)
    return f"my {kin} {story.who.name}"


def job(story: Story) -> str:
    """Tell what somebody works as."""
    name, where, habits = pick(story.rng, JOBS)
    first, second, third = story.rng.sample(habits, 3)
    pronoun = story.who.subject
    return (
        f"{name} and works {where}. {pronoun} {first} and {second}. {story.who.name} also {third}"
    )


def dish(story: Story) -> str:
    """Tell how a dish is made."""
    name, needs, steps, end = pick(story.rng, DISHES)
    first, second, third, fourth = steps
    return (
        f"to make {name}, you need {needs}. first {first}. then {second}. "
        f"after that, {third}. finally, {fourth}. {end[:-1]}"
    )


def season(story: Story) -> str:
    """Describe a season."""
    name, days, facts, end = pick(story.rng, SEASONS)
    first, second, third = story.rng.sample(facts, 3)
    start = story.choose(f"in {name.lower()} {days}|{name} is here and {days}")
    return f"{start}. {first}, and {second}. {third}. {end[:-1]}"


def town(story: Story) -> str:
    """Describe a town."""
    one, two, three, four = story.rng.sample(TOWN, 4)
    return (
        f"the [town|village] where {story.who.name} [live+|grew up] is [small and quiet|old and"
        f" beautiful]. {one}, and {two}. {three}. {four}. [I like this place|many people come here"
        " in summer|nobody wants to leave this place]"
    )


PIECES: dict[str, Callable[[Story], str]] = {
    "good": lambda story: pick(story.rng, GOOD_DAY),
    "bad": lambda story: pick(story.rng, BAD_DAY),
    "planning": lambda story: story.choose(PLANNING),
    "days": lambda story: story.choose(PAST_DAYS),
    "M": lambda story: story.choose(MOODS),
    "with": Story.company,
    "plan": plan,
    "later": lambda story: pick(story.rng, LATER_PLANS),
    "hope": lambda story: ending(story, WAY_HOME_PLAN, END_PLAN),
    "see": see,
    "see_now": lambda story: see(story, "pres"),
    "deeds": lambda story: pick(story.rng, DEEDS),
    "past": past,
    "event": lambda story: pick(story.rng, EVENTS),
    "happens": happens,
    "end": lambda story: ending(story, WAY_HOME, END_PAST),
    "my_friend": my_friend,
    "job": job,
    "habit": lambda story: pick(story.rng, HABITS),
    "more": lambda story: pick(story.rng, MORE_HABITS),
    "opinion": lambda story: pick(story.rng, OPINIONS),
    "dish": dish,
    "season": season,
    "town": town,
    "A": lambda story: story.friend.name,
    "B": lambda story: story.other.name,
}
SCENES = {
    "out": OUTDOORS,
    "in": INDOORS,
    "travel": TRAVEL,
    "winter": WINTER,
    "any": OUTDOORS + INDOORS + TRAVEL,
}


def teller(rng: random.Random, kind: str) -> Person:
    """Choose the one a story is about."""
    if kind == "I" or (kind == "any" and rng.random() < 0.5):
        return I
    if kind == "pair":
        return Person("you", "you", "your", "you")
    if kind == "any" and rng.random() < 0.2:
        return WE
    return somebody(rng)


def begin(rng: random.Random, kind: str, places: str) -> Story:
    """Choose the people and the places of a story."""
    who = teller(rng, kind)
    friend, other = somebody(rng), somebody(rng)
    while friend.name == who.name:
        friend = somebody(rng)
    while other.name == friend.name:
        other = somebody(rng)
    scenes = [pick(rng, SCENES[place]) for place in places.split() if place in SCENES]
    return Story(rng, who, THEY if kind == "pair" else who, scenes, friend, other)


def polish(text: str) -> str:
    """Begin each sentence with a capital letter and write "an" where it belongs."""
    text = re.sub(r"\ba (?=[aeio])", "an ", text)
    start = r"""(^"?|[.!?] "?|[.!]" "?)([a-z])"""
    return re.sub(start, lambda match: match.group(1) + match.group(2).upper(), text)


def stories(seed: int) -> Iterator[str]:
    """Tell stories without end, the same ones for the same seed."""
    rng = random.Random(seed)
    weights = [weight for weight, *_ in SHAPES]
    while True:
        _, kind, places, sentences = rng.choices(SHAPES, weights)[0]
        yield polish(begin(rng, kind, places).expand(sentences))


def words(text: str) -> list[str]:
    """Split a text into its words, in lower case."""
    return re.findall(r"[^\W\d_]+", text.lower())
