"""The words of the quick-start corpus: tables only, read by grammar.py.

Columns are separated by blanks, an underscore stands for a blank inside an entry.
"""

from typing import Dict, List

# English[/irregular plural], gender (m f n, w = masculine that takes the plural's ending
# everywhere but in the nominative), German singular, German plural. The key is the class
# that verbs and adjectives ask for.
NOUNS: Dict[str, str] = {
    "person": """
        man/men m Mann Männer; woman/women f Frau Frauen; child/children n Kind Kinder
        girl n Mädchen Mädchen; boy w Junge Jungen; teacher m Lehrer Lehrer; doctor m Arzt Ärzte
        student w Student Studenten; neighbour w Nachbar Nachbarn; friend m Freund Freunde
        brother m Bruder Brüder; sister f Schwester Schwestern; mother f Mutter Mütter
        father m Vater Väter; aunt f Tante Tanten; uncle m Onkel Onkel; baker m Bäcker Bäcker
        grandmother f Großmutter Großmütter; farmer w Bauer Bauern; painter m Maler Maler
        singer m Sänger Sänger; cook m Koch Köche; queen f Königin Königinnen; king m König Könige
        guest m Gast Gäste; thief/thieves m Dieb Diebe; nurse f Pflegerin Pflegerinnen
        judge m Richter Richter; pilot w Pilot Piloten; soldier w Soldat Soldaten
        lawyer m Anwalt Anwälte; prince w Prinz Prinzen; princess/princesses f Prinzessin Prinzessinnen
    """,
    "animal": """
        dog m Hund Hunde; cat f Katze Katzen; horse n Pferd Pferde; bird m Vogel Vögel
        cow f Kuh Kühe; pig n Schwein Schweine; mouse/mice f Maus Mäuse; bear w Bär Bären
        lion w Löwe Löwen; rabbit n Kaninchen Kaninchen; duck f Ente Enten; wolf/wolves m Wolf Wölfe
        fox/foxes m Fuchs Füchse; goat f Ziege Ziegen; donkey m Esel Esel; frog m Frosch Frösche
        elephant w Elefant Elefanten; monkey w Affe Affen; snake f Schlange Schlangen
    """,
    "food": """
        apple m Apfel Äpfel; bread n Brot Brote; egg n Ei Eier; cake m Kuchen Kuchen
        soup f Suppe Suppen; potato/potatoes f Kartoffel Kartoffeln; tomato/tomatoes f Tomate Tomaten
        pear f Birne Birnen; sausage f Wurst Würste; carrot f Karotte Karotten; salad m Salat Salate
        nut f Nuss Nüsse; banana f Banane Bananen; onion f Zwiebel Zwiebeln; lemon f Zitrone Zitronen
        cherry/cherries f Kirsche Kirschen; biscuit m Keks Kekse; roll n Brötchen Brötchen
    """,
    "text": """
        book n Buch Bücher; letter m Brief Briefe; newspaper f Zeitung Zeitungen
        poem n Gedicht Gedichte; story/stories f Geschichte Geschichten; report m Bericht Berichte
        message f Nachricht Nachrichten; novel m Roman Romane; postcard f Postkarte Postkarten
        song n Lied Lieder
    """,
    "object": """
        table m Tisch Tische; chair m Stuhl Stühle; door f Tür Türen; window n Fenster Fenster
        key m Schlüssel Schlüssel; bag f Tasche Taschen; cup f Tasse Tassen; plate m Teller Teller
        bottle f Flasche Flaschen; knife/knives n Messer Messer; spoon m Löffel Löffel
        fork f Gabel Gabeln; clock f Uhr Uhren; picture n Bild Bilder; box/boxes f Kiste Kisten
        coat m Mantel Mäntel; shirt n Hemd Hemden; hat m Hut Hüte; shoe m Schuh Schuhe
        dress/dresses n Kleid Kleider; ring m Ring Ringe; ball m Ball Bälle; flower f Blume Blumen
        umbrella m Regenschirm Regenschirme; mirror m Spiegel Spiegel; bed n Bett Betten
        candle f Kerze Kerzen; carpet m Teppich Teppiche; basket m Korb Körbe; coin f Münze Münzen
        gift n Geschenk Geschenke; suitcase m Koffer Koffer; guitar f Gitarre Gitarren
        blanket f Decke Decken
    """,
    "device": """
        lamp f Lampe Lampen; phone n Telefon Telefone; camera f Kamera Kameras; radio n Radio Radios
        computer m Computer Computer; machine f Maschine Maschinen
    """,
    "vehicle": """
        car n Auto Autos; bicycle n Fahrrad Fahrräder; train m Zug Züge; ship n Schiff Schiffe
        bus/buses m Bus Busse; boat n Boot Boote
    """,
    "place": """
        house n Haus Häuser; garden m Garten Gärten; kitchen f Küche Küchen; school f Schule Schulen
        church/churches f Kirche Kirchen; forest m Wald Wälder; city/cities f Stadt Städte
        village n Dorf Dörfer; park m Park Parks; room n Zimmer Zimmer; hotel n Hotel Hotels
        museum n Museum Museen; hospital n Krankenhaus Krankenhäuser; office n Büro Büros
        shop m Laden Läden; library/libraries f Bibliothek Bibliotheken; castle n Schloss Schlösser
        restaurant n Restaurant Restaurants; theatre n Theater Theater; factory/factories f Fabrik Fabriken
        tower m Turm Türme; cellar m Keller Keller; tent n Zelt Zelte; cave f Höhle Höhlen
    """,
}

# English, German[/stem before an ending].
ADJECTIVES: Dict[str, str] = {
    "living": """
        big groß; small klein; old alt; young jung; beautiful schön; ugly hässlich; happy glücklich
        sad traurig; tired müde/müd; hungry hungrig; clever klug; rich reich; poor arm; strong stark
        weak schwach; friendly freundlich; famous berühmt; lazy faul; brave mutig; strange seltsam
        angry wütend; polite höflich; curious neugierig
    """,
    "thing": """
        big groß; small klein; old alt; new neu; red rot; blue blau; green grün; black schwarz
        white weiß; yellow gelb; beautiful schön; ugly hässlich; heavy schwer; light leicht
        clean sauber; dirty schmutzig; expensive teuer/teur; cheap billig; round rund; strange seltsam
        cold kalt; warm warm; dark dunkel/dunkl; empty leer
    """,
}

# Frame, English base and past, German infinitive (prefix|verb if separable), third person
# without prefix, participle, auxiliary, classes of the subject, classes of the object.
# Frames: I no object, A accusative, D dative, DA dative and accusative, M motion into a
# place, L being in a place, P preposition and case (auf+acc) in the last column.
VERBS: str = """
    I sleep slept schlafen schläft geschlafen haben living
    I laugh laughed lachen lacht gelacht haben person
    I sing sang singen singt gesungen haben person
    I dance danced tanzen tanzt getanzt haben person
    I work worked arbeiten arbeitet gearbeitet haben person
    I cry cried weinen weint geweint haben person
    I play played spielen spielt gespielt haben living
    I swim swam schwimmen schwimmt geschwommen sein living
    I get_up got_up auf|stehen steht aufgestanden sein living
    I fall_asleep fell_asleep ein|schlafen schläft eingeschlafen sein living
    I wake_up woke_up auf|wachen wacht aufgewacht sein living
    I arrive arrived an|kommen kommt angekommen sein person
    I come_back came_back zurück|kommen kommt zurückgekommen sein living
    I go_away went_away weg|gehen geht weggegangen sein living
    M go went gehen geht gegangen sein living
    M run ran laufen läuft gelaufen sein living
    M jump jumped springen springt gesprungen sein living
    M climb climbed klettern klettert geklettert sein living
    L sit sat sitzen sitzt gesessen haben living
    L stand stood stehen steht gestanden haben living
    L stay stayed bleiben bleibt geblieben sein living
    L live lived wohnen wohnt gewohnt haben person
    D help helped helfen hilft geholfen haben person living
    D thank thanked danken dankt gedankt haben person person
    D follow followed folgen folgt gefolgt sein living living,vehicle
    A see saw sehen sieht gesehen haben living any
    A hear heard hören hört gehört haben living living,device,vehicle
    A buy bought kaufen kauft gekauft haben person animal,food,text,object,device,vehicle
    A sell sold verkaufen verkauft verkauft haben person animal,food,object,device,vehicle
    A find found finden findet gefunden haben living any
    A look_for looked_for suchen sucht gesucht haben living any
    A write wrote schreiben schreibt geschrieben haben person text
    A translate translated übersetzen übersetzt übersetzt haben person text
    A eat ate essen isst gegessen haben living food
    A steal stole stehlen stiehlt gestohlen haben living food,text,object,device
    A carry carried tragen trägt getragen haben person animal,food,object,device
    A wash washed waschen wäscht gewaschen haben person animal,food,vehicle
    A paint painted malen malt gemalt haben person living,place,vehicle
    A draw drew zeichnen zeichnet gezeichnet haben person living,place,vehicle
    A visit visited besuchen besucht besucht haben person person,place
    A love loved lieben liebt geliebt haben person living,text,place
    A hate hated hassen hasst gehasst haben person living,text,place
    A greet greeted grüßen grüßt gegrüßt haben person person
    A meet met treffen trifft getroffen haben person person
    A save saved retten rettet gerettet haben person living
    A feed fed füttern füttert gefüttert haben person animal
    A catch caught fangen fängt gefangen haben living animal
    A hunt hunted jagen jagt gejagt haben living animal
    A lose lost verlieren verliert verloren haben person text,object
    A hide hid verstecken versteckt versteckt haben living food,text,object
    A repair repaired reparieren repariert repariert haben person device,vehicle
    A push pushed schieben schiebt geschoben haben person vehicle,object
    A call called an|rufen ruft angerufen haben person person
    A invite invited ein|laden lädt eingeladen haben person person
    A pick_up picked_up ab|holen holt abgeholt haben person person,vehicle
    A turn_on turned_on ein|schalten schaltet eingeschaltet haben person device
    A turn_off turned_off aus|schalten schaltet ausgeschaltet haben person device
    A bring_along brought_along mit|bringen bringt mitgebracht haben person animal,food,text,object
    A look_at looked_at an|schauen schaut angeschaut haben living any
    A throw_away threw_away weg|werfen wirft weggeworfen haben person food,text,object
    A try_out tried_out aus|probieren probiert ausprobiert haben person food,device,vehicle
    DA give gave geben gibt gegeben haben person food,text,object
    DA show showed zeigen zeigt gezeigt haben person any
    DA send sent schicken schickt geschickt haben person text,object
    DA bring brought bringen bringt gebracht haben person food,text,object
    DA lend lent leihen leiht geliehen haben person text,object,vehicle
    DA offer offered an|bieten bietet angeboten haben person food,object,vehicle
    P wait_for waited_for warten wartet gewartet haben living living,vehicle auf+acc
    P think_of thought_of denken denkt gedacht haben person any an+acc
    P laugh_at laughed_at lachen lacht gelacht haben person living über+acc
    P talk_about talked_about sprechen spricht gesprochen haben person any über+acc
    P dream_of dreamed_of träumen träumt geträumt haben person any von+dat
"""

# Verbs that take a whole clause: with that/whether, or an infinitive with to.
CLAUSE_VERBS: str = """
    that say said sagen sagt gesagt haben person
    that think thought denken denkt gedacht haben person
    that hope hoped hoffen hofft gehofft haben person
    that believe believed glauben glaubt geglaubt haben person
    whether ask asked fragen fragt gefragt haben person
    to try tried versuchen versucht versucht haben living
    to begin began an|fangen fängt angefangen haben living
    to decide decided beschließen beschließt beschlossen haben person
    to promise promised versprechen verspricht versprochen haben person
"""

# English, German, tenses that the adverbial goes with (present, past, future; modals count
# as present).
TIMES: str = """
    today heute present,past,future; yesterday gestern past; tomorrow morgen future
    now jetzt present; often oft present,past; every_day jeden_Tag present,past
    in_the_morning am_Morgen present,past,future; in_the_evening am_Abend present,past,future
    at_night in_der_Nacht present,past,future; in_summer im_Sommer present,past,future
    in_winter im_Winter present,past,future; on_Monday am_Montag present,past,future
    on_Friday am_Freitag present,past,future; on_Sunday am_Sonntag present,past,future
    last_week letzte_Woche past; two_days_ago vor_zwei_Tagen past; next_year nächstes_Jahr future
    soon bald future; after_lunch nach_dem_Mittagessen present,past,future
"""
MANNERS: str = "quickly schnell; slowly langsam; quietly leise; gladly gern; carefully vorsichtig; alone allein"

# English, German case-taking preposition of a place, case.
PLACES: str = "in in dat; behind hinter dat; in_front_of vor dat; next_to neben dat; near bei dat"
COMPANIES: str = "with mit dat; without ohne acc; for für acc"

# English of the present and the past (the German Perfekt), then German.
SUBORDINATORS: List[List[str]] = [
    ["because", "weil", "present,past,future"],
    ["although", "obwohl", "present,past,future"],
    ["if", "falls", "present,future"],
    ["when", "wenn", "present"],
    ["when", "als", "past"],
    ["while", "während", "present,past"],
]

# English, with not (-: never negated), first and third person, infinitive.
MODALS: str = """
    can cannot kann können; must - muss müssen; should should_not soll sollen
    may may_not darf dürfen; want_to - will wollen
"""

# English subject and object, person (1, 3, p), nominative, accusative, dative.
PRONOUNS: str = """
    I me 1 ich mich mir; he him 3 er ihn ihm; she her 3 sie sie ihr
    we us p wir uns uns; they them p sie sie ihnen
"""
