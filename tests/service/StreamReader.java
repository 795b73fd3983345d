/* Lists what java.util.zip.ZipInputStream reads from standard input: a name and a size a line. */

import java.util.zip.ZipEntry;
import java.util.zip.ZipInputStream;

class StreamReader {
    public static void main(String[] words) throws Exception {
        try (ZipInputStream archive = new ZipInputStream(System.in)) {
            for (ZipEntry entry; (entry = archive.getNextEntry()) != null; ) {
                System.out.println(entry.getName() + " " + archive.readAllBytes().length);
            }
        }
    }
}
