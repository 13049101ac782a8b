//! The examples of upstream's documentation of its libraries.

use crate::{all_fail, all_true};
use serde_json::json;

#[test]
fn strings() {
    all_true(
        &json!({}),
        &[
            "'hello'.charAt(4) == 'o' && 'hello'.charAt(5) == ''",
            "'hello mellow'.indexOf('') == 0 && 'hello mellow'.indexOf('ello') == 1",
            "'hello mellow'.indexOf('jello') == -1 && 'hello mellow'.indexOf('', 2) == 2",
            "'hello mellow'.indexOf('ello', 2) == 7",
            "'hello mellow'.lastIndexOf('') == 12 && 'hello mellow'.lastIndexOf('ello') == 7",
            "'hello mellow'.lastIndexOf('jello') == -1 && 'hello mellow'.lastIndexOf('ello', 6) == 1",
            "'TacoCÆt Xii'.lowerAscii() == 'tacocÆt xii' && 'TacoCÆt Xii'.upperAscii() == 'TACOCÆT XII'",
            "'hello hello'.replace('he', 'we') == 'wello wello'",
            "'hello hello'.replace('he', 'we', 1) == 'wello hello'",
            "'hello hello'.replace('he', 'we', 0) == 'hello hello'",
            "'hello hello'.replace('he', 'we', -1) == 'wello wello'",
            "'ab'.replace('', '-') == '-a-b-'",
            "'hello hello hello'.split(' ') == ['hello', 'hello', 'hello']",
            "'hello hello hello'.split(' ', 0) == []",
            "'hello hello hello'.split(' ', 1) == ['hello hello hello']",
            "'hello hello hello'.split(' ', 2) == ['hello', 'hello hello']",
            "'abc'.split('') == ['a', 'b', 'c'] && 'abc'.split('', 2) == ['a', 'bc']",
            "'tacocat'.substring(4) == 'cat' && 'tacocat'.substring(0, 4) == 'taco'",
            "'  \\ttrim\\n    '.trim() == 'trim'",
            "['hello', 'mellow'].join() == 'hellomellow' && ['hello', 'mellow'].join(' ') == 'hello mellow'",
            "[].join() == '' && [].join('/') == ''",
            "'hello'.contains('ell') && 'hello'.startsWith('he') && 'hello'.endsWith('lo')",
            "'résumé'.size() == 6 && size('résumé') == 6 && b'é'.size() == 2",
            "strings.quote('say \"hi\"\\n') == '\"say \\\\\"hi\\\\\"\\\\n\"'",
        ],
    );
    all_fail(
        &json!({}),
        &[
            ("'hello'.charAt(-1) == ''", "index out of range: -1"),
            ("'hello mellow'.indexOf('ello', 20) == 1", "index out of range: 20"),
            ("'hello mellow'.lastIndexOf('ello', -1) == 1", "index out of range: -1"),
            ("'tacocat'.substring(-1) == ''", "index out of range: -1"),
            ("'tacocat'.substring(2, 1) == ''", "invalid substring range. start: 2, end: 1"),
        ],
    );
}

#[test]
fn format_of_strings() {
    all_true(
        &json!({}),
        &[
            "'this is a string: %s\\nand an integer: %d'.format([dyn('str'), 42]) == 'this is a string: str\\nand an integer: 42'",
            "'a double substituted with %%s: %s'.format([64.2]) == 'a double substituted with %s: 64.2'",
            "'string type: %s'.format([type(string)]) == 'string type: type'",
            "'timestamp: %s'.format([timestamp('2023-02-03T23:31:20+00:00')]) == 'timestamp: 2023-02-03T23:31:20Z'",
            "'duration: %s'.format([duration('1h45m47s')]) == 'duration: 6347s'",
            "'%f'.format([3.14]) == '3.140000' && '%.2f'.format([3.14159]) == '3.14'",
            "'scientific notation: %e'.format([2.71828]) == 'scientific notation: 2.718280\\u202f\\u00d7\\u202f10\\u2070\\u2070'",
            "'%.1e'.format([1234.5]) == '1.2\\u202f\\u00d7\\u202f10\\u2070\\u00b3'",
            "'5 in binary: %b'.format([5]) == '5 in binary: 101' && '%b'.format([true]) == '1'",
            "'26 in hex: %x %X'.format([26, 26]) == '26 in hex: 1a 1A' && '%x'.format(['hello']) == '68656c6c6f'",
            "'30 in octal: %o'.format([30]) == '30 in octal: 36' && '%x'.format([-26]) == '-1a'",
            "'a map inside a list: %s'.format([[dyn(1), 2, 3, {'a': 'x', 'b': 'y', 'c': 'z'}]]) == 'a map inside a list: [1, 2, 3, {\"a\":\"x\", \"b\":\"y\", \"c\":\"z\"}]'",
            "'true bool: %s - false bool: %s'.format([true, false]) == 'true bool: true - false bool: false'",
            "'%s'.format([[dyn('abc'), 3.14, null, [9, 8]]]) == '[\"abc\", 3.140000, null, [9, 8]]'",
            "'%s'.format([null]) == 'null' && '%f'.format([double('NaN')]) == 'NaN'",
        ],
    );
    all_fail(
        &json!({}),
        &[
            ("'%d %d'.format([1]) == ''", "index 1 out of range"),
            (
                "'%d'.format(['a']) == ''",
                "error during formatting: decimal clause can only be used on integers, was given string",
            ),
            (
                "'%q'.format(['a']) == ''",
                "could not parse formatting clause: unrecognized formatting clause \"q\"",
            ),
        ],
    );
}

#[test]
fn lists_sets_and_patterns() {
    all_true(
        &json!({"l": [2, 1]}),
        &[
            "[1, 2, 2].isSorted() && !['b', 'a'].isSorted() && [].isSorted()",
            "[1, 3].sum() == 4 && [1.0, 3.0].sum() == 4.0 && [duration('1m'), duration('1s')].sum() == duration('61s')",
            "[].sum() == 0 && [1u, 2u].sum() == 3u",
            "[1, 3].min() == 1 && [1, 3].max() == 3 && ['a', 'b'].max() == 'b'",
            "[1, 2, 2, 3].indexOf(2) == 1 && ['a', 'b'].lastIndexOf('c') == -1 && [1, 2, 2].lastIndexOf(2) == 2",
            "x.l.min() == 1 && x.l.sum() == 3 && !x.l.isSorted()",
            "sets.contains([1, 2, 3], [2, 3]) && !sets.contains([1], [2]) && sets.contains([1], [])",
            "sets.equivalent([1, 1], [1]) && !sets.equivalent([1, 2], [1])",
            "sets.intersects([1], [1, 2]) && !sets.intersects([1], [])",
            "'abc 123'.find('[0-9]+') == '123' && 'abc 123'.find('xyz') == ''",
            "'123 abc 456'.findAll('[0-9]+') == ['123', '456'] && '123 abc 456'.findAll('[0-9]+', 1) == ['123']",
            "'123 abc 456'.findAll('xyz') == []",
            "'foobar'.matches('^foo.*r$') && matches('foobar', 'o+b') && !'foobar'.matches('^bar')",
            "'٣'.matches('^[^\\\\d]$') && '3'.matches('^\\\\d$') && !'é'.matches('\\\\w') && 'a-b'.matches('\\\\ba\\\\b')",
            "'a.b'.matches('^\\\\Qa.b\\\\E$') && '[x]'.matches('^[[]x[]]$') && 'a&&b'.matches('^[a&&b]+$')",
            "'x1'.matches('^[[:alpha:]][[:digit:]]$') && 'é'.matches('^\\\\pL$')",
        ],
    );
    all_fail(
        &json!({"p": "["}),
        &[("[].min() == 1", "min called on empty list"), ("[].max() == 1", "max called on empty list")],
    );
}

#[test]
fn urls() {
    all_true(
        &json!({}),
        &[
            "isURL('https://user:pass@example.com:80/path?query=val#fragment') && isURL('/absolute-path')",
            "!isURL('https://a:b:c/') && !isURL('../relative-path') && !isURL('')",
            "url('/path').getScheme() == '' && url('https://example.com/').getScheme() == 'https'",
            "url('https://example.com:80/').getHost() == 'example.com:80' && url('/path').getHost() == ''",
            "url('https://[::1]:80/').getHost() == '[::1]:80' && url('https://[::1]/').getHost() == '[::1]'",
            "url('https://example.com:80/').getHostname() == 'example.com' && url('https://[::1]:80/').getHostname() == '::1'",
            "url('https://example.com:80/').getPort() == '80' && url('https://example.com/').getPort() == ''",
            "url('https://example.com/path').getEscapedPath() == '/path' && url('https://example.com').getEscapedPath() == ''",
            "url('https://example.com/path with spaces/').getEscapedPath() == '/path%20with%20spaces/'",
            "url('https://example.com/path?k1=a&k2=b&k2=c').getQuery() == {'k1': ['a'], 'k2': ['b', 'c']}",
            "url('https://example.com/path?key with spaces=value with spaces').getQuery() == {'key with spaces': ['value with spaces']}",
            "url('https://example.com/path?').getQuery() == {} && url('https://example.com/path').getQuery() == {}",
            "url('https://example.com/') == url('https://example.com/')",
        ],
    );
}

#[test]
fn quantities() {
    all_true(
        &json!({}),
        &[
            "isQuantity('1.3G') && isQuantity('1.3Gi') && !isQuantity('1,3G') && isQuantity('10000k')",
            "!isQuantity('200K') && !isQuantity('Three') && !isQuantity('Mi') && !isQuantity('')",
            "quantity('50000000G').isInteger() && quantity('50k').isInteger() && !quantity('50m').isInteger()",
            "!quantity('9999999999999999999999999999999999999G').isInteger()",
            "quantity('50k').asInteger() == 50000 && quantity('50k').sub(20000).asApproximateFloat() == 30000.0",
            "quantity('50k').add(quantity('20k')) == quantity('70k') && quantity('50k').add(20) == quantity('50020')",
            "quantity('50k').sub(quantity('20k')) == quantity('30k') && quantity('50k').sub(20000) == quantity('30k')",
            "quantity('50k').add(20).sub(quantity('100k')).sub(-50000) == quantity('20')",
            "quantity('200M').compareTo(quantity('0.2G')) == 0 && quantity('50M').compareTo(quantity('50Mi')) == -1",
            "quantity('50Mi').compareTo(quantity('50M')) == 1 && quantity('150Mi').isGreaterThan(quantity('100Mi'))",
            "quantity('50M').isLessThan(quantity('100M')) && sign(quantity('-1')) == -1",
            "quantity('1.5Gi') == quantity('1536Mi') && quantity('0.1') == quantity('100m') && quantity('12e3') == quantity('12k')",
        ],
    );
    all_fail(
        &json!({}),
        &[
            ("quantity('50m').asInteger() == 1", "cannot convert value to integer"),
            (
                "quantity('') == quantity('1')",
                "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
            ),
            ("quantity('200K') == quantity('1')", "unable to parse quantity's suffix"),
        ],
    );
}

#[test]
fn addresses() {
    all_true(
        &json!({}),
        &[
            "isIP('127.0.0.1') && isIP('::1') && !isIP('127.0.0.256') && !isIP(':::1') && !isIP('::ffff:1.2.3.4')",
            "!isIP('fe80::1%eth0') && !isIP('01.2.3.4')",
            "ip.isCanonical('127.0.0.1') && ip.isCanonical('2001:db8::abcd') && !ip.isCanonical('2001:DB8::ABCD')",
            "!ip.isCanonical('2001:db8::0:0:0:abcd')",
            "ip('127.0.0.1').family() == 4 && ip('::1').family() == 6",
            "ip('0.0.0.0').isUnspecified() && ip('::').isUnspecified() && !ip('::1').isUnspecified()",
            "ip('127.0.0.1').isLoopback() && ip('::1').isLoopback() && !ip('192.168.0.1').isLoopback()",
            "ip('224.0.0.1').isLinkLocalMulticast() && !ip('224.0.1.1').isLinkLocalMulticast()",
            "ip('ff02::1').isLinkLocalMulticast() && !ip('fd00::1').isLinkLocalMulticast()",
            "ip('169.254.169.254').isLinkLocalUnicast() && ip('fe80::1').isLinkLocalUnicast() && !ip('fd80::1').isLinkLocalUnicast()",
            "ip('192.168.0.1').isGlobalUnicast() && !ip('255.255.255.255').isGlobalUnicast() && ip('2001:db8::abcd').isGlobalUnicast() && !ip('ff00::1').isGlobalUnicast()",
            "cidr('192.168.0.0/24').containsIP(ip('192.168.0.1')) && !cidr('192.168.0.0/24').containsIP('192.168.1.1')",
            "cidr('192.168.0.0/16').containsCIDR(cidr('192.168.10.0/24')) && cidr('192.168.0.0/16').containsCIDR('192.168.10.0/24')",
            "!cidr('192.168.1.0/24').containsCIDR(cidr('192.168.2.0/24')) && !cidr('192.168.0.0/24').containsCIDR('192.168.0.0/16')",
            "cidr('192.168.0.1/24').ip() == ip('192.168.0.1') && cidr('::1/128').ip().family() == 6",
            "cidr('192.168.0.1/24').masked() == cidr('192.168.0.0/24') && cidr('192.168.0.1/24') != cidr('192.168.0.1/24').masked()",
            "cidr('192.168.0.0/16').prefixLength() == 16 && cidr('::1/128').prefixLength() == 128",
            "isCIDR('::1/128') && !isCIDR('192.168.0.0/33') && !isCIDR('::1/129') && !isCIDR('10.0.0.0')",
            "string(ip('2001:DB8::1')) == '2001:db8::1' && string(cidr('10.0.0.0/8')) == '10.0.0.0/8'",
            "type(ip('::1')) == net.IP && cidr('0.0.0.0/0').containsIP('1.2.3.4') && cidr('::/0').containsIP('::5')",
        ],
    );
}

#[test]
fn formats_versions_and_images() {
    all_true(
        &json!({}),
        &[
            "!format.dns1123Label().validate('my-label-name').hasValue()",
            "format.dns1123Label().validate('Bad_Name').value().size() == 1",
            "format.named('dns1123Subdomain').value().validate('a.b') == optional.none()",
            "!format.named('nope').hasValue()",
            "!format.qualifiedName().validate('apiextensions.k8s.io/v1beta1').hasValue()",
            "format.qualifiedName().validate('a/b/c').hasValue() && format.qualifiedName().validate('/b').hasValue()",
            "!format.dns1123LabelPrefix().validate('my-label-prefix-').hasValue()",
            "format.dns1035Label().validate('1abc').hasValue() && !format.labelValue().validate('').hasValue()",
            "!format.uri().validate('http://example.com').hasValue() && format.uri().validate('no').hasValue()",
            "!format.uuid().validate('123e4567-e89b-12d3-a456-426614174000').hasValue() && format.uuid().validate('x').hasValue()",
            "!format.byte().validate('aGVsbG8=').hasValue() && format.byte().validate('*').value() == ['invalid base64']",
            "!format.date().validate('2021-01-01').hasValue() && format.date().validate('2021-13-01').value() == ['invalid date']",
            "!format.datetime().validate('2021-01-01T00:00:00Z').hasValue()",
            "isSemver('1.0.0') && !isSemver('hello') && !isSemver('v1.0') && isSemver('v1.0', true)",
            "semver('v1.0.0', true) == semver('1.0.0') && semver('01.01.01', true) == semver('1.1.1')",
            "semver('1.2.3').major() == 1 && semver('1.2.3').minor() == 2 && semver('1.2.3').patch() == 3",
            "semver('1.2.3').compareTo(semver('2.0.0')) == -1 && semver('1.2.3').isGreaterThan(semver('0.1.2'))",
            "semver('1.0.0-alpha.1').isLessThan(semver('1.0.0')) && semver('1.0.0-alpha.2').isLessThan(semver('1.0.0-alpha.10'))",
            "!isSemver('01.0.0') && !isSemver('1.0') && isSemver('1.0.0-rc.1+build.5') && !isSemver('1.0.0-01')",
            "isImage('registry.k8s.io/kube-apiserver-arm64:latest') && isImage('nginx') && !isImage('registry.k8s.io//kube-apiserver-arm64')",
            "image('kube-apiserver-arm64:testtag').registry() == 'index.docker.io'",
            "image('kube-apiserver-arm64:testtag').repository() == 'library/kube-apiserver-arm64'",
            "image('registry.k8s.io/kube-apiserver-arm64').tag() == 'latest' && image('registry.k8s.io/a/b').repository() == 'a/b'",
            "!image('registry.k8s.io/kube-apiserver-arm64:latest').containsDigest()",
            "image('registry.k8s.io/ab:t@sha256:6aefddb645ee6963afd681b1845c661d0ea4c3b20ab9db86d9e753b203d385f2').identifier() == 'sha256:6aefddb645ee6963afd681b1845c661d0ea4c3b20ab9db86d9e753b203d385f2'",
            "image('localhost:5000/ab:t').registry() == 'localhost:5000' && image('localhost:5000/ab:t').identifier() == 't'",
        ],
    );
}
